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
    /// Wire bytes of QEMU's small blocks that will probably travel between the gate's opening and the guest's stop.
    public var earlyBytes: Double = 0
    /// Guest memory dirtied per second, in bytes, as it was seen in the last round.
    public var dirtyBytesPerS: Double = 0
    /// Milliseconds since this round began.
    public var roundMs: Double = 0
    /// Wire bytes per second that the link takes.
    public var linkBytesPerS: Double = 0
    /// Wire bytes per byte of guest data, of late.
    public var ratio: Double = 1
    /// The same of pages that have changed. Of what is left for the stop, all have.
    public var changedRatio: Double = 1
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
    /// From the end of the last round to the stop, of vCPUs that stand: QEMU gets hold of them in the moments that they are given.
    static func stopMs(noticeMs: Double) -> Double { noticeMs + 0.7 * Brake.periodMs }

    /// Its vCPUs can be made to stand still before QEMU stops them.
    func mayStand(_ gate: SwitchGate) -> Bool { canSlowDown && gate.mayStand && !qemuStops }
    /// What the guest goes on writing for after a round, of which no other round takes a part.
    var unsentMs: Double { qemuStops ? 0 : noticeMs }
    /// The same moment with nothing left to send.
    var withNothingLeft: GateSample {
        var sample = self
        (sample.remainingBytes, sample.closedBytes, sample.doubtBytes, sample.heldBytes) = (0, 0, 0, 0)
        (sample.dirtyBytesPerS, sample.standing, sample.earlyBytes) = (0, .no, 0)
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
        let sendMs = readyPages * pageBytes * ratio / max(linkBytesPerS, 1) * 1000
        (noticeMs, qemuStops, heldBytes) = (closing.noticeMs, closing.qemuStops, heldPages * pageBytes)
        // A long round says too little of a short one, so the curve is asked first.
        func written(inMs spanMs: Double) -> Double {
            min(gate.expectedPages(inMs: spanMs) ?? pagesPerS * spanMs / 1000, pagesMax)
        }
        func leaving(_ pages: Double, of written: Double, _ standing: Standing) -> GateSample {
            var sample = self
            sample.standing = standing
            sample.remainingBytes = written * pageBytes + heldBytes
            sample.doubtBytes = written * gate.doubt * pageBytes
            sample.closedBytes = max(written - pages, 0) * pageBytes
            let spanMs = standing == .no ? noticeMs : Self.stopMs(noticeMs: noticeMs)
            // It takes QEMU about half of the notice to set up its migration.
            let travelMs = max(spanMs - noticeMs / 2, 0)
            sample.earlyBytes = min(SwitchGate.deviceBytes, travelMs / 1000 * linkBytesPerS)
            return sample
        }
        // Until it stops rounds go on, beside QEMU's small blocks.
        let deviceMs = SwitchGate.deviceBytes / max(linkBytesPerS, 1) * 1000
        let changedMs = pageBytes * changedRatio / max(linkBytesPerS, 1) * 1000
        let (running, stopMs) = (written(inMs: sendMs + noticeMs), Self.stopMs(noticeMs: noticeMs))
        var left = running
        if let roundMs = closing.roundMs, let curve = gate.curve {
            left = curve.left(
                of: written(inMs: sendMs + min(deviceMs, noticeMs)), pageMs: changedMs,
                forMs: max(noticeMs - deviceMs, 0), roundMs: roundMs, running: 1 - gate.slowed)
        }
        self = leaving(left, of: running, .no)
        guard mayStand(gate) else { return }
        let sent = written(inMs: sendMs)
        let standing = leaving(
            closing.roundMs == nil ? sent : max(sent - max(stopMs - deviceMs, 0) / changedMs, 0), of: sent,
            .afterRound(ms: stopMs))
        if gate.prefers(standing, to: self) { self = standing }
        // This round's pages are known, what it writes meanwhile is not. One that was slowed down may be late with its work, and
        // writes as fast as it can whenever it runs.
        let through = leaving(sent, of: sent, .throughRound(ms: sendMs + stopMs))
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
