/// What the switch gate decides from; one sample every few tens of milliseconds.
public struct GateSample: Sendable, Equatable {
    public var elapsedMs: Double = 0
    /// QEMU's rounds begun so far; 1 is the first pass over all memory.
    public var round = 0
    /// Guest memory that QEMU still has to send in this round, in bytes.
    public var remainingBytes: Double = 0
    /// Guest memory dirtied per second, in bytes, as QEMU saw it in the last round.
    public var dirtyBytesPerS: Double = 0
    /// Milliseconds since this round began.
    public var roundMs: Double = 0
    /// Wire bytes per second that the link takes.
    public var linkBytesPerS: Double = 0
    /// Wire bytes per byte of guest data, of late.
    public var ratio: Double = 1
    /// Wire bytes sent but not yet installed.
    public var unconfirmedBytes: Double = 0
    /// Wire bytes that plain QEMU would have sent beyond ours so far.
    public var savedBytes: Double = 0
    public init() {}
}

public struct GateForecast: Sendable, Equatable {
    /// The pause if the VM were stopped now.
    public var downtimeMs: Double
    /// Wire bytes that would travel while it stands still.
    public var stopBytes: Double
    /// Time until the VM runs at the destination; nil when the memory is dirtied faster than it travels.
    public var remainingMs: Double?
}

/// Decides when to stop the VM. A pure value.
///
/// Simple on purpose: it looks at the present only. It opens when what is left fits the allowed pause, but goes on
/// while another round would shorten the pause a lot and its bytes are covered by what compression and zero runs have
/// saved, so that Apus never sends more than plain QEMU would.
public struct SwitchGate: Sendable {
    /// Loading the device state, hand-over and resume: what a stop costs with nothing left to send.
    public static let fixedMs = 15.0
    /// Wire bytes of the device state of an ordinary VM.
    public static let deviceBytes = 300_000.0
    /// A round is worth its bytes if it begins with less than this share of the lowest before it.
    public static let shrink = 0.7
    /// A pause so short that waiting for a shorter one is not worth a round.
    public static let goodEnoughMs = 2.0

    private let maxDowntimeMs: Double
    private var lastRound = 0
    /// What the shortest round so far began with.
    private var lowestRoundBytes = Double.infinity
    private var isShrinking = true
    public private(set) var isOpen = false

    public init(maxDowntimeMs: Double) { self.maxDowntimeMs = maxDowntimeMs }

    public func forecast(_ sample: GateSample) -> GateForecast {
        let link = max(sample.linkBytesPerS, 1)
        // Stopping takes QEMU up to 100 ms to notice; meanwhile the round goes on and the guest dirties on.
        let dirtied = sample.dirtyBytesPerS * sample.roundMs / 1000
        let pages = (sample.remainingBytes + dirtied) * sample.ratio
        let stopBytes = pages + sample.unconfirmedBytes + Self.deviceBytes
        let net = link / max(sample.ratio, 1e-6) - sample.dirtyBytesPerS
        return GateForecast(
            downtimeMs: stopBytes / link * 1000 + Self.fixedMs, stopBytes: stopBytes,
            remainingMs: net > 0 ? sample.remainingBytes / net * 1000 + Self.fixedMs : nil)
    }

    /// True once, when a round has not made less of what is left: no pause will ever fit, and what is left can be fetched.
    public mutating func opensFlat() -> Bool {
        guard !isOpen, lastRound >= 2, !isShrinking else { return false }
        isOpen = true
        return true
    }

    /// True once, at the moment when the VM should be stopped.
    public mutating func shouldOpen(_ sample: GateSample) -> Bool {
        if isOpen { return false }
        if sample.round != lastRound {
            lastRound = sample.round
            // Against the lowest, not the last: rounds of a steady writer go up and down for ever.
            isShrinking = sample.remainingBytes < Self.shrink * lowestRoundBytes
            lowestRoundBytes = min(lowestRoundBytes, sample.remainingBytes)
        }
        // Nothing is known of the writable working set before the first round is over.
        guard sample.round >= 2 else { return false }
        let forecast = forecast(sample)
        guard forecast.downtimeMs <= maxDowntimeMs else { return false }
        let pagesMs = (forecast.stopBytes - Self.deviceBytes) / max(sample.linkBytesPerS, 1) * 1000
        let isAffordable = forecast.stopBytes - Self.deviceBytes < sample.savedBytes
        if pagesMs > Self.goodEnoughMs && isShrinking && isAffordable { return false }
        isOpen = true
        return true
    }
}
