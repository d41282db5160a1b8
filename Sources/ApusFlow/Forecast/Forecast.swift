/// What a migration is about to meet: the VM, the link, and how long it may stop.
public struct ForecastInput: Sendable, Equatable, Codable {
    /// Guest memory that is not zero, pages.
    public var pages: Double
    /// Wire bytes per page of the first pass, and of a page sent again because it has changed.
    public var firstBytesPerPage: Double
    public var againBytesPerPage: Double
    /// The latter of pages that are written all the time, and of those that were not written for a while; nil: of all alike.
    public var hotBytesPerPage: Double?
    public var freshBytesPerPage: Double?
    /// Payload bytes per second that the link takes.
    public var linkBytesPerS: Double
    /// Connections for pages.
    public var lanes: Int
    public var workingSet: WorkingSet
    /// Where in the first pass its pages travel: shares of the pass's time.
    public var writtenSpan = 0.0...1.0
    /// The longest pause that is allowed, and the part of it that is there without any page.
    public var maxDowntimeMs: Double
    public var fixedDowntimeMs: Double
    /// Before the first byte: the destination's QEMU starts, the agents agree.
    public var prepareMs: Double
    /// How QEMU comes to stop the guest.
    public var closing: Closing

    public init(
        pages: Double, firstBytesPerPage: Double, againBytesPerPage: Double, linkBytesPerS: Double,
        lanes: Int, workingSet: WorkingSet, maxDowntimeMs: Double, fixedDowntimeMs: Double = SwitchGate.fixedMs,
        prepareMs: Double = 0, closing: Closing = .direct
    ) {
        self.pages = pages
        self.firstBytesPerPage = firstBytesPerPage
        self.againBytesPerPage = againBytesPerPage
        self.linkBytesPerS = linkBytesPerS
        self.lanes = lanes
        self.workingSet = workingSet
        self.maxDowntimeMs = maxDowntimeMs
        self.fixedDowntimeMs = fixedDowntimeMs
        self.prepareMs = prepareMs
        self.closing = closing
    }
}

/// What lies between the gate's opening and the guest's stop.
public struct Closing: Sendable, Equatable, Codable {
    /// Rounds go on so that little is left, at least so long each; nil: no more rounds.
    public var roundMs: Double?
    /// How long it is likely to take QEMU.
    public var noticeMs: Double
    /// See ``GateSample/qemuStops``.
    public var qemuStops = false

    /// QEMU sets up its migration, sends its small blocks and stops the guest.
    public static let direct = Closing(roundMs: 2, noticeMs: 5)
    /// QEMU compares what is left with its limit every 100 ms.
    public static let stream = Closing(roundMs: nil, noticeMs: 50, qemuStops: true)
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
    /// The share of the time that the vCPUs are made to stand still at last.
    public var slowedBy = 0.0
}

extension Forecast {
    /// Nothing is done about a guest that is too busy.
    public static func rounds(_ input: ForecastInput) -> Forecast { move(input, slowsDown: false) }

    /// What becomes of a migration without a mode.
    ///
    /// - Parameter slowsDown: a guest that is too busy may be slowed down.
    public static func move(_ input: ForecastInput, slowsDown: Bool) -> Forecast {
        ForetoldRounds(input, slowsDown: slowsDown).run()
    }

    /// Rounds as long as each is much shorter than the one before; then the guest moves, and what is left follows.
    public static func hybrid(_ input: ForecastInput) -> Forecast {
        var forecast = ForetoldRounds(input, slowsDown: false, movesWhenFlat: true).run()
        forecast.ending = following(input)
        return forecast
    }

    /// The guest moves at once, every page follows it.
    public static func postcopy(_ input: ForecastInput) -> Forecast {
        let wireBytes = input.pages * input.firstBytesPerPage
        let pauseMs = SwitchGate.leastMs(fixedMs: input.fixedDowntimeMs, linkBytesPerS: input.linkBytesPerS)
        return Forecast(
            ending: following(input), rounds: 1, wireBytes: wireBytes,
            totalMs: input.prepareMs + pauseMs + wireBytes / max(input.linkBytesPerS, 1) * 1000, downtimeMs: pauseMs)
    }

    private static func following(_ input: ForecastInput) -> Ending {
        input.fixedDowntimeMs <= input.maxDowntimeMs ? .follows : .tooBusy
    }

    /// The forecast for the curve, and for guests that write less or more than it by two standard deviations.
    public static func band(
        _ input: ForecastInput, _ forecast: (ForecastInput) -> Forecast = rounds
    ) -> (low: Forecast, likely: Forecast, high: Forecast) {
        func scaled(_ factor: Double) -> Forecast {
            var other = input
            other.workingSet = input.workingSet.scaled(factor)
            return forecast(other)
        }
        let spread = min(2 * input.workingSet.spread, 0.9)
        return (scaled(1 - spread), forecast(input), scaled(1 + spread))
    }
}
