internal import ApusMemory
internal import ApusSystem

/// What the switch gate decides from; one sample every few tens of milliseconds.
public struct GateSample: Sendable, Equatable {
    public var elapsedMs: Double = 0
    /// Rounds begun so far; 1 is the first pass over all memory.
    public var round = 0
    /// Guest memory that still has to be sent in this round, in bytes.
    public var remainingBytes: Double = 0
    /// What may come to it if the guest writes more than it is expected to: two standard deviations.
    public var doubtBytes: Double = 0
    /// What rounds between the gate's opening and the guest's stop will probably take of `remainingBytes`.
    public var closedBytes: Double = 0
    /// Guest memory dirtied per second, in bytes, as it was seen in the last round.
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
    /// Between the end of this round and the guest's stop; it goes on writing.
    public var noticeMs: Double = 0
    /// QEMU makes the rounds and chooses the moment of the stop, which nobody knows beforehand. Its rounds go on until then, and
    /// take what the guest writes within the notice; one that was slowed down is as slow as can be by then.
    public var qemuStops = false
    /// When the guest is to stand still, so that its pause has begun before it is stopped.
    public var standing = Standing.no
    /// Guest memory that does not travel before the stop, in bytes; a part of `remainingBytes`.
    public var heldBytes: Double = 0
    /// The vCPUs can be slowed down.
    public var canSlowDown = false
    public init() {}

    public enum Standing: Sendable, Equatable {
        case no
        /// From the end of this round until it is stopped.
        case afterRound(ms: Double)
        /// While this round travels, too.
        case throughRound(ms: Double)

        public var ms: Double {
            switch self {
            case .no: 0
            case .afterRound(let ms), .throughRound(let ms): ms
            }
        }
    }
}

extension GateSample {
    /// From the end of the last round to the stop, of vCPUs that stand: QEMU waits for them when it stops them.
    static func stopMs(noticeMs: Double) -> Double { noticeMs + Brake.periodMs / 2 }

    /// Its vCPUs can be made to stand still before QEMU stops them.
    func mayStand(_ gate: SwitchGate) -> Bool { canSlowDown && gate.mayStand && !qemuStops }
    /// What the guest goes on writing for after a round, of which no other round takes a part.
    var unsentMs: Double { qemuStops ? 0 : noticeMs }
    /// The same moment with nothing left to send.
    var withNothingLeft: GateSample {
        var sample = self
        (sample.remainingBytes, sample.closedBytes, sample.doubtBytes, sample.heldBytes) = (0, 0, 0, 0)
        (sample.dirtyBytesPerS, sample.standing) = (0, .no)
        return sample
    }

    /// What will be left when this round's pages are out and QEMU has stopped the guest. Link and ratio must be known.
    ///
    /// - Parameters:
    ///   - heldPages: pages that do not travel before the stop.
    ///   - pagesPerS: what it wrote of late, for a gate that knows no curve.
    mutating func expectStop(
        _ gate: SwitchGate, _ closing: Closing, readyPages: Double, heldPages: Double, pagesMax: Double,
        pagesPerS: Double
    ) {
        let pageBytes = Double(Limits.pageBytes)
        let pageMs = pageBytes * ratio / max(linkBytesPerS, 1) * 1000
        let sendMs = readyPages * pageMs
        (noticeMs, qemuStops) = (closing.noticeMs, closing.qemuStops)
        let stands = mayStand(gate) && gate.letsStand(noticeMs: noticeMs, pageMs: pageMs)
        let stopMs = Self.stopMs(noticeMs: noticeMs)
        standing = stands ? .afterRound(ms: stopMs) : .no
        let spanMs = stands ? sendMs : sendMs + noticeMs
        // A long round says too little of a short one, so the curve is asked first.
        let written = min(gate.expectedPages(inMs: spanMs) ?? pagesPerS * spanMs / 1000, pagesMax)
        heldBytes = heldPages * pageBytes
        remainingBytes = written * pageBytes + heldBytes
        doubtBytes = written * gate.doubt * pageBytes
        if let roundMs = closing.roundMs, let curve = gate.curve {
            // While it stands, too, its pages travel.
            let left =
                stands
                ? max(written - stopMs / pageMs, 0)
                : curve.left(
                    of: gate.expectedPages(inMs: sendMs) ?? written, pageMs: pageMs, forMs: noticeMs, roundMs: roundMs,
                    running: 1 - gate.slowed)
            closedBytes = max(written - left, 0) * pageBytes
        }
        guard mayStand(gate) else { return }
        // This round's pages are known, what it writes meanwhile is not. One that was slowed down may be late with its work, and
        // writes as fast as it can whenever it runs.
        var through = self
        (through.standing, through.closedBytes) = (.throughRound(ms: sendMs + stopMs), 0)
        if gate.slowed > 0 || gate.prefers(through, to: self) { self = through }
    }
}

public struct GateForecast: Sendable, Equatable {
    /// The pause if the VM were stopped now, and what it hardly exceeds.
    public var downtimeMs: Double
    public var worstMs: Double
    /// Wire bytes that would travel while it stands still.
    public var stopBytes: Double
    /// Time until the VM runs at the destination; nil when the memory is dirtied faster than it travels.
    public var remainingMs: Double?
}
