internal import ApusSystem

/// How many different pages a guest writes within a time, learnt from what it wrote within other times.
///
/// ```
///   pages
///     |            _______------   dirtied(t) = set (1 - exp(-t / refill)) + wide (1 - exp(-drift t / wide))
///     |      __---
///     |   _-           set     pages that are written again and again, the writable working set
///     |  /             refill  time in which all but a third of them have been written once, ms
///     | /              drift   pages that were not written for long, per ms
///     |/               wide    how many of these there are; unknown: they never end, drift t
///     +--------------------- time since the last look, ms
/// ```
///
/// A guest that writes pages of a hot set at random is exactly this, with `refill` = set / writes per ms; its kernel writes some
/// pages more often than that, and then the hot set is the wide one. The rounds of a migration differ in length, so they show the
/// curve; see ``WorkingSetHistory``. All times are the guest's: those of one that is slowed down go by as slowly as its work; see
/// ``CPUDemand``.
///
/// Source: writable working set and its history, Piao et al., BdCloud 2014; the curve is our reconstruction.
public struct WorkingSet: Sendable, Equatable, Codable {
    public var setPages: Double
    public var refillMs: Double
    public var driftPagesPerMs: Double
    /// nil: more than could be told.
    public var widePages: Double?
    /// Standard deviation of what was seen from the curve, as a share of the curve.
    public var spread: Double
    public var demand: CPUDemand

    public init(
        setPages: Double, refillMs: Double, driftPagesPerMs: Double, widePages: Double? = nil, spread: Double = 0,
        demand: CPUDemand = .whole
    ) {
        self.setPages = setPages
        self.refillMs = refillMs
        self.driftPagesPerMs = driftPagesPerMs
        self.widePages = widePages
        self.spread = spread
        self.demand = demand
    }

    /// Different pages written within `ms` while the vCPUs may run for this share of it.
    public func dirtied(inMs ms: Double, running: Double) -> Double {
        dirtied(inMs: ms * demand.progress(running: running))
    }

    /// Different pages written within `ms`.
    public func dirtied(inMs ms: Double) -> Double {
        guard ms > 0 else { return 0 }
        return setPages * (1 - exponential(-ms / refillMs)) + wide(inMs: ms)
    }

    private func wide(inMs ms: Double) -> Double {
        guard let widePages, widePages > 0 else { return driftPagesPerMs * ms }
        return widePages * (1 - exponential(-driftPagesPerMs * ms / widePages))
    }

    /// Pages that were not written for long are told apart from those that are written again and again.
    public var hasFresh: Bool { driftPagesPerMs > 0 }

    /// Its hot and its seldom written pages, each as a set of its own.
    ///
    /// - Returns: `pages`: that there are of them; nil: not known.
    var parts: [(set: WorkingSet, pages: Double?)] {
        let hot = WorkingSet(setPages: setPages, refillMs: refillMs, driftPagesPerMs: 0, demand: demand)
        let wide = WorkingSet(
            setPages: 0, refillMs: refillMs, driftPagesPerMs: driftPagesPerMs, widePages: widePages, demand: demand)
        return [(hot, setPages), (wide, widePages)].filter { $0.set.setPages > 0 || $0.set.driftPagesPerMs > 0 }
    }

    /// The same guest, writing this many times the pages in the same time.
    func scaled(_ factor: Double) -> WorkingSet {
        var other = self
        other.setPages *= factor
        other.driftPagesPerMs *= factor
        other.widePages = widePages.map { $0 * factor }
        return other
    }
}

/// So many different pages were written in so long, in which the vCPUs stood still for a part of the time.
public struct TimedLook: Sendable, Equatable {
    public var endMs: Double
    public var spanMs: Double
    public var stoodMs: Double
    public var pages: Double
    public init(endMs: Double, spanMs: Double, stoodMs: Double, pages: Double) {
        self.endMs = endMs
        self.spanMs = spanMs
        self.stoodMs = stoodMs
        self.pages = pages
    }
}

/// What was seen of a guest's writing, of late. A pure value; one look at a time is added.
public struct WorkingSetHistory: Sendable, Equatable, Codable {
    /// One look: so many different pages were written in so long.
    public struct Look: Sendable, Equatable, Codable {
        public var endMs: Double
        public var spanMs: Double
        public var pages: Double
        public init(endMs: Double, spanMs: Double, pages: Double) {
            self.endMs = endMs
            self.spanMs = spanMs
            self.pages = pages
        }
    }

    /// How the writing moves, against what the curve expects of each look: weighted least squares over the latest.
    public struct Trend: Sendable, Equatable {
        /// Now; 1: as the curve has it.
        public var level: Double
        /// Change of the level within a second.
        public var risePerS: Double
        /// Share of the levels' variation that the line explains, 0 to 1.
        public var certainty: Double
        /// From the first look that it is taken from until now.
        public var spanS: Double
    }

    /// Looks that are kept. Older ones say little of a guest that has changed its work.
    public static let looksMax = 64
    /// Looks that the trend is taken from, and the weight of each against the one after it.
    static let trendLooks = 8
    static let trendFade = 0.8
    /// The same for the curve: it needs looks of many lengths, and those are not all recent.
    static let curveFade = 0.95

    public private(set) var looks: [Look] = []
    /// nil: not measured.
    public var demand: CPUDemand?

    public init() {}

    /// - Parameter look: not earlier than the one before; of no length or without a sense it is left out.
    public mutating func add(_ look: Look) {
        guard look.spanMs > 0, look.pages >= 0, look.spanMs.isFinite, look.pages.isFinite else { return }
        if looks.count == Self.looksMax { looks.removeFirst() }
        looks.append(look)
    }

    /// Ages all looks, so that they belong to an earlier migration: they tell of the curve, not of the trend.
    ///
    /// - Parameter factor: what the guest is expected to write now, against what it wrote then.
    public func asPrior(times factor: Double = 1) -> WorkingSetHistory {
        var prior = WorkingSetHistory()
        prior.demand = demand
        for look in looks.suffix(Self.priorLooksMax) {
            prior.looks.append(Look(endMs: -1, spanMs: look.spanMs, pages: look.pages * factor))
        }
        return prior
    }
    private static let priorLooksMax = 24

    /// Looks at the present that are enough to forget the past.
    static let ownLooks = 6

    /// Forgets what belongs to an earlier migration, once enough is known of this one.
    mutating func forgetPrior() {
        guard looks.first.map({ $0.endMs < 0 }) ?? false, looks.count(where: { $0.endMs >= 0 }) >= Self.ownLooks else {
            return
        }
        looks.removeAll { $0.endMs < 0 }
    }

    /// nil: fewer than three looks.
    public var trend: Trend? {
        let recent = looks.suffix(Self.trendLooks).filter { $0.endMs >= 0 }
        guard recent.count >= 3, let now = recent.last?.endMs else { return nil }
        // A long look finds fewer pages per second of the same guest, so rates cannot be compared as they are.
        guard let curve else { return nil }
        var sums = Sums()
        var weight = 1.0
        for look in recent.reversed() {
            let expected = curve.dirtied(inMs: look.spanMs)
            let middleS = (look.endMs - look.spanMs / 2 - now) / 1000
            let level = expected > 0 ? look.pages / expected : 1
            sums.add(x: middleS, y: level, weight: weight)
            weight *= Self.trendFade
        }
        let first = recent.map { $0.endMs - $0.spanMs }.min() ?? now
        return sums.line.map {
            Trend(
                level: max(0, $0.atZero), risePerS: $0.slope, certainty: $0.certainty, spanS: (now - first) / 1000)
        }
    }

    /// The curve nearest to all looks; nil: there is none yet.
    ///
    /// For each of many times `refill` the set is the least squares, weighted so that a look counts by the share it is wrong by,
    /// alone and with a drift, endless or over a wide set. All stay above zero. A drift is believed when the looks are much better
    /// told with it, and its end when they are still better told: both reach far beyond the longest look.
    public var curve: WorkingSet? {
        guard let shortest = looks.map(\.spanMs).min(), let longest = looks.map(\.spanMs).max() else { return nil }
        let refills = shortest / 4...longest * 4
        guard let plain = best(in: refills, step: Self.refillStep, { $0.plain }),
            var other = best(in: refills, step: Self.refillStep, { $0.drifting })
        else { return nil }
        let isRough = plain.set.spread > Self.chance
        if isRough, longest >= Self.wideSpans * shortest, let wide = wide(shortest, longest),
            wide.error < Self.wideGain * other.error
        {
            other = wide
        }
        let isExact = other.error < Self.exactGain * plain.error
        var curve = isExact || isRough && other.error < Self.driftGain * plain.error ? other.set : plain.set
        curve.demand = demand ?? .whole
        return curve
    }

    private static let refillStep = 1.05
    private static let driftGain = 0.5
    private static let exactGain = 0.02
    private static let wideGain = 0.8
    private static let wideStep = 1.25
    /// Two sets can be told apart by looks that differ in length by so much.
    private static let wideSpans = 8.0
    /// Looks at a guest that writes at random differ by this much anyway.
    private static let chance = 0.04

    private func best(
        in range: ClosedRange<Double>, step: Double, wideMs: Double = .infinity, _ fit: (CurveSums) -> Fit
    ) -> Fit? {
        var best: Fit?
        var refillMs = range.lowerBound
        // A set that refills more slowly than the longest looks show cannot be told from a drift.
        while refillMs <= range.upperBound {
            let next = fit(curveSums(refillMs: refillMs, wideMs: wideMs))
            if best.map({ next.error < $0.error }) ?? true { best = next }
            refillMs *= step
        }
        return best
    }

    /// The best of all pairs of sets, roughly.
    private func wide(_ shortest: Double, _ longest: Double) -> Fit? {
        var best: Fit?
        var wideMs = shortest * 2
        while wideMs <= longest * 4 {
            let next = self.best(in: shortest / 4...wideMs / 2, step: Self.wideStep, wideMs: wideMs) { $0.drifting }
            if let next, best.map({ next.error < $0.error }) ?? true { best = next }
            wideMs *= Self.wideStep
        }
        return best
    }

    private func curveSums(refillMs: Double, wideMs: Double) -> CurveSums {
        var sums = CurveSums(refillMs: refillMs, wideMs: wideMs)
        var weight = 1.0
        for look in looks.reversed() {
            sums.add(look, weight: weight)
            weight *= Self.curveFade
        }
        return sums
    }
}

private struct Fit {
    var error: Double
    var set: WorkingSet
}

/// Weighted sums of pages = set f + drift g, each look divided by its pages so that all lengths count alike.
private struct CurveSums {
    let refillMs: Double
    /// Of the wide set; infinite: a drift.
    let wideMs: Double
    private var (ff, fg, gg, fy, gy, yy, total) = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)

    init(refillMs: Double, wideMs: Double) { (self.refillMs, self.wideMs) = (refillMs, wideMs) }

    mutating func add(_ look: WorkingSetHistory.Look, weight: Double) {
        let size = max(look.pages, 1)
        let f = (1 - exponential(-look.spanMs / refillMs)) / size
        let newMs = wideMs.isFinite ? wideMs * (1 - exponential(-look.spanMs / wideMs)) : look.spanMs
        let (g, y) = (newMs / size, look.pages / size)
        ff += weight * f * f
        fg += weight * f * g
        gg += weight * g * g
        fy += weight * f * y
        gy += weight * g * y
        yy += weight * y * y
        total += weight
    }

    var plain: Fit { fit(set: fy / ff, drift: 0) }

    var drifting: Fit {
        let determinant = ff * gg - fg * fg
        guard determinant > 1e-12 * ff * gg else { return plain }
        let (set, drift) = ((fy * gg - gy * fg) / determinant, (gy * ff - fy * fg) / determinant)
        if set < 0 { return fit(set: 0, drift: gy / gg) }
        return drift < 0 ? plain : fit(set: set, drift: drift)
    }

    private func fit(set: Double, drift: Double) -> Fit {
        let error = yy - 2 * (set * fy + drift * gy) + set * set * ff + 2 * set * drift * fg + drift * drift * gg
        return Fit(
            error: max(0, error),
            set: WorkingSet(
                setPages: set, refillMs: refillMs, driftPagesPerMs: drift,
                widePages: wideMs.isFinite && drift > 0 ? drift * wideMs : nil,
                spread: (max(0, error) / total).squareRoot()))
    }
}

/// Weighted sums of a straight line's least squares.
private struct Sums {
    private var (weight, x, y, xx, xy, yy) = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)

    mutating func add(x newX: Double, y newY: Double, weight newWeight: Double) {
        weight += newWeight
        x += newWeight * newX
        y += newWeight * newY
        xx += newWeight * newX * newX
        xy += newWeight * newX * newY
        yy += newWeight * newY * newY
    }

    /// nil: all at one x.
    var line: (atZero: Double, slope: Double, certainty: Double)? {
        let (spreadX, spreadY, both) = (weight * xx - x * x, weight * yy - y * y, weight * xy - x * y)
        guard spreadX > 1e-12 * weight * xx else { return nil }
        let slope = both / spreadX
        let certainty = spreadY > 1e-12 * weight * yy ? both * both / (spreadX * spreadY) : 0
        return ((y - slope * x) / weight, slope, certainty)
    }
}
