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
    ///
    /// - Parameter shrink: a round is worth its bytes if it begins with this share of the lowest one before it, or less.
    public static func rounds(_ input: ForecastInput, shrink: Double = SwitchGate.shrink) -> Forecast {
        let link = max(input.linkBytesPerS, 1)
        let pageMs = input.againBytesPerPage / link * 1000
        var wireBytes = input.pages * input.firstBytesPerPage
        var roundMs = wireBytes / link * 1000
        var totalMs = input.prepareMs + roundMs
        var lowest = Double.infinity
        for round in 1...roundsMax {
            let left = min(input.workingSet.dirtied(inMs: roundMs), input.pages)
            let leftMs = left * pageMs
            let downtimeMs = leftMs + input.fixedDowntimeMs
            let isShrinking = left < shrink * lowest
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

    /// 0.7 to the power of this is less than a page of any guest.
    private static let roundsMax = 256

    /// The forecast for the curve, and for guests that write less or more than it by two standard deviations.
    public static func band(_ input: ForecastInput) -> (low: Forecast, likely: Forecast, high: Forecast) {
        func scaled(_ factor: Double) -> Forecast {
            var other = input
            other.workingSet.setPages *= factor
            other.workingSet.driftPagesPerMs *= factor
            return rounds(other)
        }
        let spread = min(2 * input.workingSet.spread, 0.9)
        return (scaled(1 - spread), rounds(input), scaled(1 + spread))
    }
}
