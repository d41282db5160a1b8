internal import ApusSystem

/// What may be done about a guest that writes more than the link carries within the allowed pause, the mildest first.
///
/// ```
///   rounds get no shorter, or    slow down   the vCPUs stand still for the share of the time that costs least, or hardly more;
///     surely will not, and do      |         where rounds do not end with it, or with a pause that costs more, for half of what was left
///     not fit the pause            |         to them, and so on
///                                hand over   the guest moves, the rest is fetched
///                                  |
///                                refuse      when it has not calmed down within the patience, or at the deadline
/// ```
///
/// Every way down ends: a rung is tried at most once for each of ``shares``, and the last one is an end.
public struct Ladder: Sendable, Equatable {
    public var slowsDown: Bool
    public var handsOver: Bool
    /// Since the flow began: by then the guest runs at the destination, or stays.
    public var deadlineMs: Double?
    /// With no rung left, a calmer moment is waited for so long.
    public var patienceMs: Double
    /// From the decision to the guest running there, generously.
    public var handOverMs: Double

    public init(
        slowsDown: Bool = false, handsOver: Bool = false, deadlineMs: Double? = nil, patienceMs: Double = .infinity,
        handOverMs: Double = Ladder.handOverMs
    ) {
        self.slowsDown = slowsDown
        self.handsOver = handsOver
        self.deadlineMs = deadlineMs
        self.patienceMs = patienceMs
        self.handOverMs = handOverMs
    }

    /// Where the agents own the memory.
    public static let handOverMs = 1_000.0
    /// Shares of the time that vCPUs may be made to stand still: each leaves them some 0.7 of what the one before it does.
    static let shares = [0.2, 0.35, 0.5, 0.65, 0.75, 0.82, 0.875, 0.91, 0.935, 0.955, 0.97, Brake.hardest]

    /// Those that may follow one, the mildest first: one that was too little has shown that what is known of the guest is not enough,
    /// so half its speed, and so on.
    static func shares(behind share: Double) -> [Double] {
        shares.filter { $0 > share && (share == 0 || 1 - $0 <= (1 - share) / 2 || $0 == Brake.hardest) }
    }
}

/// What keeps a guest from being moved, in numbers.
public struct Shortfall: Sendable, Equatable {
    /// Of different memory, in a round that sends what is left now: a longer one, as the first pass, finds less of the same guest.
    public var dirtyBytesPerS: Double
    public var linkBytesPerS: Double
    /// The pause that it would take now.
    public var neededMs: Double
    /// It is short enough, the gate is open, but QEMU does not stop the guest.
    public var waitsForQemu: Bool
    public var elapsedMs: Double
}

extension WorkingSet {
    /// How rounds against a guest end.
    struct Settling: Sendable, Equatable {
        /// Until what is left fits the pause.
        var fitsMs: Double
        /// Until it gets no shorter, and what it then takes.
        var ms: Double
        var leftMs: Double
    }

    /// Rounds against this guest, as long as they get shorter; nil: what is left then cannot travel in `freeMs`.
    ///
    /// - Parameters:
    ///   - pages: what the first of them sends.
    ///   - noticeMs: what the guest goes on writing for after the last one.
    ///   - running: share of the time in which its vCPUs run.
    func settle(
        from pages: Double, pageMs: Double, noticeMs: Double, running: Double, freeMs: Double
    ) -> Settling? {
        var left = pages
        var totalMs = 0.0
        var fitsMs: Double?
        // 0.8 to the power of this is less than a page of any guest.
        for round in 0..<256 {
            let spanMs = left * pageMs + noticeMs
            totalMs += spanMs
            let next = dirtied(inMs: spanMs, running: running)
            let leftMs = next * pageMs
            if leftMs <= freeMs { fitsMs = fitsMs ?? totalMs }
            if round > 0 && next > SwitchGate.shrink * left || leftMs <= SwitchGate.goodEnoughMs {
                return leftMs <= freeMs ? fitsMs.map { Settling(fitsMs: $0, ms: totalMs, leftMs: leftMs) } : nil
            }
            left = next
        }
        return nil
    }

    /// What is left of `pages` when rounds, each at least `roundMs` long, have gone on for `ms`, and were then cut short.
    func left(of pages: Double, pageMs: Double, forMs ms: Double, roundMs: Double, running: Double) -> Double {
        var (left, restMs) = (pages, ms)
        while restMs > 0 {
            let spanMs = max(left * pageMs, roundMs)
            if spanMs >= restMs { return max(left - restMs / pageMs, 0) + dirtied(inMs: restMs, running: running) }
            left = dirtied(inMs: spanMs, running: running)
            restMs -= spanMs
        }
        return left
    }
}
