/// One program's walk through memory, as far as it can be told from its touches.
///
/// ```
///              touched            given already      may be given          not yet
///   ───●──●──●──●──●──────────────○──○──○──○──○──────· · · · · · ·──────────────────▶ pages
///                  last           `--- stride ---'                ^
///                  step 0         1  2  3 …          nextStep     where it is by now + depth
/// ```
///
/// Touches of pages that were given in time are not seen. So the walk goes on by the clock, at the speed it had, until
/// ``blindSteps`` have been given without a touch that confirms it, or fewer if it was short. A mere direction is given a
/// few pages ahead.
struct PageStream: Sendable {
    private(set) var last: PageNumber
    private(set) var lastMs: Double
    private var steps: [Int] = []
    /// nil: there is none.
    private(set) var trend: Trend?
    private var touches = 0
    /// Touches that followed the trend, less by half with each that did not.
    private var followed = 0
    /// Touches per millisecond; 0: not known.
    private(set) var speed = 0.0
    private var measuredSinceMs: Double
    private var measuredSteps = 0
    /// How many steps are given ahead at least. Doubles with each touch that follows the trend, halves with one that does not.
    private(set) var reach = reachMin
    /// The next step to be given, counted from `last`.
    private(set) var nextStep = 1

    static let reachMin = 8
    static let reachMax = 128
    /// Touches further apart than this are of two programs.
    static let gapMax = 128
    static let blindSteps = 512
    /// For each touch that followed, so many: a walk of a moment is not believed for long.
    private static let blindShare = 4
    /// Time of the walk that is given ahead.
    static let horizonMs = 60.0
    private static let speedWindowMs = 10.0

    init(at page: PageNumber, ms: Double) {
        last = page
        lastMs = ms
        measuredSinceMs = ms
        steps.reserveCapacity(Trend.stepsMax)
    }

    /// How well a touch fits: pages between it and where it is expected; nil: it is of another program.
    func distance(to page: PageNumber, ms: Double) -> Int? {
        let way = Int(page) - Int(last)
        if let steps = stepsAlong(way, ms: ms) { return steps == 0 ? 0 : min(steps - 1, Self.gapMax) }
        return abs(way) <= Self.gapMax ? abs(way) : nil
    }

    /// Whole steps of the trend to a page that the walk may have come to by now.
    private func stepsAlong(_ way: Int, ms: Double) -> Int? {
        guard let trend, way % trend.stride == 0 else { return nil }
        let count = way / trend.stride
        let farthest = max(nextStep + 2 * reach, Int(2 * speed * (ms - lastMs)))
        return count >= 0 && count <= farthest ? count : nil
    }

    /// - Parameter missing: pages whose touch would have been seen.
    mutating func touch(_ page: PageNumber, ms: Double, missing: PageSet) {
        let way = Int(page) - Int(last)
        defer {
            last = page
            lastMs = ms
        }
        guard way != 0 else { return }
        // Touches in between were not seen because their pages had come.
        let along = stepsAlong(way, ms: ms).flatMap { leapsOver(missing, to: $0) ? nil : $0 }
        let count = along ?? 1
        nextStep = along.map { max(1, nextStep - $0) } ?? 1
        followed = along != nil ? min(followed + 1, Self.blindSteps) : followed / 2
        if steps.count == Trend.stepsMax { steps.removeFirst() }
        steps.append(along != nil && trend?.kind == .stride ? trend?.stride ?? way : way)
        if trend != nil { reach = along != nil ? min(reach * 2, Self.reachMax) : max(reach / 2, Self.reachMin) }
        measure(count, ms)
        look()
    }

    /// A walk of this trend would have touched pages on its way that it has not: it has another one. Some of those may be of
    /// another walk.
    private func leapsOver(_ missing: PageSet, to step: Int) -> Bool {
        guard let trend, step > nextStep else { return false }
        let skipped = max(nextStep, step - Trend.stepsMax)..<step
        let untouched = skipped.count { missing.contains(PageNumber(Int(last) + trend.stride * $0)) }
        return untouched * 2 > skipped.count
    }

    private mutating func measure(_ count: Int, _ ms: Double) {
        measuredSteps += count
        let elapsed = ms - measuredSinceMs
        guard elapsed >= Self.speedWindowMs else { return }
        let rate = Double(measuredSteps) / elapsed
        speed = speed == 0 ? rate : speed + 0.3 * (rate - speed)
        measuredSteps = 0
        measuredSinceMs = ms
    }

    /// A direction, which takes much longer to find than a stride, is looked for now and then.
    private mutating func look() {
        touches += 1
        if let stride = Trend.majority(steps) {
            trend = stride
        } else if touches % Trend.directionStepsMin == 0 {
            trend = Trend.direction(steps)
        } else if trend?.kind == .stride {
            trend = nil
        }
    }

    /// Not some steps that happen to be equal.
    var isWalk: Bool { trend?.kind == .stride && followed >= Self.walkSteps }
    private static let walkSteps = 8

    /// It has a trend, and is believed still.
    var goesOn: Bool { trend != nil && nextStep <= min(Self.blindSteps, Self.blindShare * followed) }

    /// Steps from where the walk is by now to the next that may be given; nil: none may.
    func lead(ms: Double) -> Double? {
        guard let trend, goesOn else { return nil }
        let now = speed * (ms - lastMs)
        let depth =
            trend.kind == .direction
            ? Double(Self.reachMin) : max(Double(reach), trend.confidence * speed * Self.horizonMs)
        let lead = Double(nextStep) - now
        return lead <= depth ? max(lead, 1) : nil
    }

    /// Gives the next steps, `limit` at most; nil: they would leave memory, and the walk ends.
    mutating func take(_ limit: Int, below pageCount: PageNumber) -> AccessPredictor.Walk? {
        guard let trend else { return nil }
        let first = Int(last) + trend.stride * nextStep
        let room = trend.stride > 0 ? Int(pageCount) - 1 - first : first
        guard first >= 0, room >= 0 else {
            nextStep = Self.blindSteps + 1
            return nil
        }
        let count = min(limit, room / abs(trend.stride) + 1)
        nextStep += count
        let lowest = trend.stride > 0 ? first : first + trend.stride * (count - 1)
        return .init(first: PageNumber(lowest), stride: abs(trend.stride), count: count)
    }
}
