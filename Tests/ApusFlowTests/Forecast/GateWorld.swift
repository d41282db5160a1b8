import ApusFlow

/// A guest that writes, a link, and the rounds that a direct source makes, without any of them: only time and numbers.
struct GateWorld {
    var gate: SwitchGate
    var maxDowntimeMs: Double
    /// Pages of the first pass, and milliseconds of the link for each.
    var pages = 40_000.0
    var pageMs = 0.035
    /// How fast the guest is at a moment, against its curve.
    var speed: (_ ms: Double) -> Double = { _ in 1 }
    /// What it writes at speed 1.
    var guest: WorkingSet
    var canSlowDown = true
    /// What its vCPUs have to do, and what the gate is told of it; nil: nothing.
    var demand = CPUDemand.whole { didSet { measuredShare = demand.share } }
    var measuredShare: Double? = 1
    /// When it first asks for it, its vCPUs are stopped for this share of the time, whatever it asks for.
    var forcedShare: Double?

    init(_ guest: WorkingSet, maxDowntimeMs: Double = 300, _ ladder: Ladder = Ladder()) {
        self.guest = guest
        self.maxDowntimeMs = maxDowntimeMs
        gate = SwitchGate(maxDowntimeMs: maxDowntimeMs, ladder: ladder)
    }

    struct End {
        var decision: SwitchGate.Decision
        var ms: Double
        var rounds: Int
        /// Of `open`: what the pause then is.
        var pauseMs: Double
        /// The largest share of the time that the vCPUs stood still.
        var slowed: Double
        /// Asked for, one after the other, the first in this round.
        var shares: [Double]
        var rungRound: Int?
        var rungs: Int { shares.count }
        /// Work that the guest has not done for having been slowed down, and the time since it first was; milliseconds.
        var lostMs = 0.0
        var slowedForMs = 0.0
    }

    var noticeMs = 8.0
    /// QEMU makes the rounds: they go on within the notice, while the guest is as slow as can be.
    var qemuStops = false
    /// A guest without a way is looked at again after this.
    private static let steadyMs = 500.0
    private static let limitMs = 3_600_000.0

    /// Runs until the gate decides for an end; nil: it does not, within an hour.
    func run() -> End? {
        var (gate, ms, slowed) = (gate, 0.0, 0.0)
        var (shares, rungRound): ([Double], Int?) = ([], nil)
        var (left, lastReady) = (pages, Double.infinity)
        var (lostMs, slowedSinceMs): (Double, Double?) = (0, nil)
        for round in 2...100_000 {
            let sendMs = max(left * pageMs, 1)
            let idleMs = left < SwitchGate.shrink * lastReady || slowed > 0 ? 0 : max(0, Self.steadyMs - sendMs)
            lastReady = left
            let spanMs = sendMs + idleMs
            let ran = demand.progress(running: 1 - slowed) * speed(ms)
            gate.saw(busyShare: measuredShare)
            let written = guest.dirtied(inMs: spanMs * ran)
            for share in [0.02, 0.05, 0.1, 0.25, 0.5, 1] {
                let lookMs = spanMs * share
                let pages = guest.dirtied(inMs: lookMs * ran)
                gate.saw(TimedLook(endMs: ms + lookMs, spanMs: lookMs, stoodMs: slowed * lookMs, pages: pages))
            }
            ms += spanMs
            lostMs += spanMs * (1 - demand.progress(running: 1 - slowed))
            var sample = GateSample()
            sample.elapsedMs = ms
            sample.round = round
            sample.linkBytesPerS = 4096 / pageMs * 1000
            (sample.noticeMs, sample.qemuStops) = (noticeMs, qemuStops)
            sample.canSlowDown = canSlowDown
            let expected = gate.expectedPages(inMs: written * pageMs + (qemuStops ? 0 : noticeMs)) ?? written
            sample.remainingBytes = expected * 4096
            sample.doubtBytes = expected * gate.doubt * 4096
            sample.dirtyBytesPerS = written / spanMs * 1000 * 4096
            sample.savedBytes = .infinity
            let decision = gate.decide(sample)
            left = max(written, 1)
            switch decision {
            case .wait: break
            case .slowDown(let share):
                slowed = max(slowed, shares.isEmpty ? forcedShare ?? share : share)
                slowedSinceMs = slowedSinceMs ?? ms
                shares.append(share)
                rungRound = rungRound ?? round
            case .open, .handOver, .refuse:
                let ran = demand.progress(running: 1 - slowed) * speed(ms)
                let last = guest.dirtied(inMs: (left * pageMs + (qemuStops ? 0 : noticeMs)) * ran)
                var end = End(
                    decision: decision, ms: ms, rounds: round,
                    pauseMs: last * pageMs + SwitchGate.fixedMs + SwitchGate.deviceBytes / sample.linkBytesPerS * 1000,
                    slowed: slowed, shares: shares, rungRound: rungRound)
                end.lostMs = lostMs + end.pauseMs
                end.slowedForMs = ms - (slowedSinceMs ?? ms)
                return end
            }
            if ms > Self.limitMs { return nil }
        }
        return nil
    }
}
