/// What a migration is about to meet: the VM, the link, and how long it may stop.
public struct ForecastInput: Sendable, Equatable, Codable {
    /// Guest memory that is not zero, pages.
    public var pages: Double
    /// Wire bytes per page of the first pass, and of a page sent again.
    public var firstBytesPerPage: Double
    public var againBytesPerPage: Double
    /// Payload bytes per second that the link takes.
    public var linkBytesPerS: Double
    public var workingSet: WorkingSet
    /// The longest pause that is allowed, and the part of it that is there without any page.
    public var maxDowntimeMs: Double
    public var fixedDowntimeMs: Double
    /// Before the first byte: the destination's QEMU starts, the agents agree.
    public var prepareMs: Double

    public init(
        pages: Double, firstBytesPerPage: Double, againBytesPerPage: Double, linkBytesPerS: Double,
        workingSet: WorkingSet, maxDowntimeMs: Double, fixedDowntimeMs: Double = SwitchGate.fixedMs,
        prepareMs: Double = 0
    ) {
        self.pages = pages
        self.firstBytesPerPage = firstBytesPerPage
        self.againBytesPerPage = againBytesPerPage
        self.linkBytesPerS = linkBytesPerS
        self.workingSet = workingSet
        self.maxDowntimeMs = maxDowntimeMs
        self.fixedDowntimeMs = fixedDowntimeMs
        self.prepareMs = prepareMs
    }
}

/// What becomes of a migration, before it is made.
public struct Forecast: Sendable, Equatable, Codable {
    public enum Ending: String, Sendable, Codable {
        /// The rounds get shorter until what is left is nothing to speak of.
        case converges
        /// They stop getting shorter, but what is left fits the allowed pause.
        case fits
        /// What is left does not fit: the guest writes too fast for this link and this pause.
        case tooBusy
        /// The guest moves first, what is left follows it.
        case follows
    }

    public var ending: Ending
    public var rounds: Int
    public var wireBytes: Double
    public var totalMs: Double
    /// Of `tooBusy`: the pause it would take.
    public var downtimeMs: Double
}

extension Forecast {
    /// The rounds that a source makes, one after the other, against the curve instead of a guest.
    public static func rounds(_ input: ForecastInput) -> Forecast {
        let wireBytes = input.pages * input.firstBytesPerPage
        let roundMs = wireBytes / max(input.linkBytesPerS, 1) * 1000
        return rounds(
            input,
            after: Forecast(
                ending: .tooBusy, rounds: 1, wireBytes: wireBytes, totalMs: input.prepareMs + roundMs,
                downtimeMs: roundMs))
    }

    /// - Parameter before: what was done up to a round that took its `downtimeMs`.
    private static func rounds(_ input: ForecastInput, after before: Forecast) -> Forecast {
        let pageMs = input.againBytesPerPage / max(input.linkBytesPerS, 1) * 1000
        var (wireBytes, roundMs, totalMs) = (before.wireBytes, before.downtimeMs, before.totalMs)
        var lowest = Double.infinity
        for round in before.rounds..<before.rounds + roundsMax {
            let left = min(input.workingSet.dirtied(inMs: roundMs), input.pages)
            let leftMs = left * pageMs
            let downtimeMs = leftMs + input.fixedDowntimeMs
            let isShrinking = left < SwitchGate.shrink * lowest
            let isEnough = leftMs <= SwitchGate.goodEnoughMs
            lowest = min(lowest, left)
            if isEnough || !isShrinking {
                let fits = downtimeMs <= input.maxDowntimeMs
                return Forecast(
                    ending: isEnough && fits ? .converges : fits ? .fits : .tooBusy, rounds: round + 1,
                    wireBytes: wireBytes + left * input.againBytesPerPage, totalMs: totalMs + downtimeMs,
                    downtimeMs: downtimeMs)
            }
            wireBytes += left * input.againBytesPerPage
            roundMs = leftMs
            totalMs += leftMs
        }
        preconditionFailure("each round is shorter than the one before by a share, so they end")
    }

    /// A guest that is too busy is slowed down when its rounds have stopped getting shorter; from then on they do.
    public static func slowed(_ input: ForecastInput, by share: Double) -> Forecast {
        var before = rounds(input)
        guard before.ending == .tooBusy else { return before }
        // What would have been the pause is one more round.
        before.totalMs -= input.fixedDowntimeMs
        before.downtimeMs -= input.fixedDowntimeMs
        return rounds(input.slowed(by: share), after: before)
    }

    /// What becomes of a migration without a mode.
    ///
    /// - Parameter slowsDown: a guest that is too busy may be slowed down.
    public static func move(_ input: ForecastInput, slowsDown: Bool) -> Forecast {
        leastShare(input).map { slowsDown ? slowed(input, by: $0) : rounds(input) } ?? rounds(input)
    }

    /// 0.7 to the power of this is less than a page of any guest.
    private static let roundsMax = 256

    /// Rounds as long as each is much shorter than the one before; then the guest moves, and what is left follows.
    public static func hybrid(_ input: ForecastInput) -> Forecast {
        var forecast = rounds(input)
        let leftMs = forecast.downtimeMs - input.fixedDowntimeMs
        (forecast.ending, forecast.downtimeMs) = (following(input), input.fixedDowntimeMs)
        // The rest travels whole: nobody at the destination has the old content of a page that is missing.
        let growth = input.againBytesPerPage > 0 ? input.firstBytesPerPage / input.againBytesPerPage : 1
        let linkBytesPerMs = max(input.linkBytesPerS, 1) / 1000
        forecast.wireBytes += leftMs * (growth - 1) * linkBytesPerMs
        forecast.totalMs += leftMs * (growth - 1)
        return forecast
    }

    /// The guest moves at once, every page follows it.
    public static func postcopy(_ input: ForecastInput) -> Forecast {
        let wireBytes = input.pages * input.firstBytesPerPage
        let totalMs = input.prepareMs + input.fixedDowntimeMs + wireBytes / max(input.linkBytesPerS, 1) * 1000
        return Forecast(
            ending: following(input), rounds: 1, wireBytes: wireBytes, totalMs: totalMs,
            downtimeMs: input.fixedDowntimeMs)
    }

    private static func following(_ input: ForecastInput) -> Ending {
        input.fixedDowntimeMs <= input.maxDowntimeMs ? .follows : .tooBusy
    }

    /// The least share of the time that the vCPUs must stand still for the rounds to end; nil: none is needed, or none helps.
    public static func leastShare(_ input: ForecastInput) -> Double? {
        guard rounds(input).ending == .tooBusy else { return nil }
        return Ladder.shares.first { slowed(input, by: $0).ending != .tooBusy }
    }

    /// The forecast for the curve, and for guests that write less or more than it by two standard deviations.
    public static func band(
        _ input: ForecastInput, _ forecast: (ForecastInput) -> Forecast = rounds
    ) -> (low: Forecast, likely: Forecast, high: Forecast) {
        func scaled(_ factor: Double) -> Forecast {
            var other = input
            other.workingSet.setPages *= factor
            other.workingSet.driftPagesPerMs *= factor
            return forecast(other)
        }
        let spread = min(2 * input.workingSet.spread, 0.9)
        return (scaled(1 - spread), forecast(input), scaled(1 + spread))
    }
}

extension ForecastInput {
    /// The same guest, standing still for a share of the time.
    func slowed(by share: Double) -> ForecastInput {
        var slowed = self
        slowed.workingSet.refillMs /= 1 - share
        slowed.workingSet.driftPagesPerMs *= 1 - share
        return slowed
    }
}
