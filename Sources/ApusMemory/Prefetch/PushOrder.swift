/// What decides the order of pages that nobody has asked for yet; each also does what those before it do.
public enum Prefetch: String, Codable, Sendable, CaseIterable {
    /// Nothing: from the beginning of memory to its end.
    case sweep
    /// What lies around touched pages, and where many are.
    case near
    /// What was used at the source just before, in this order.
    case recorded
    /// Where the touches go.
    case trend
    /// Nothing but an order that was given: in experiments, what the guest will use.
    case given

    var usesRecord: Bool { self != .sweep && self != .near }
    var followsTouches: Bool { self != .sweep && self != .given }
}

/// In which order pages that nobody has asked for yet are sent to a VM that runs at its destination already.
///
/// ```
///   trend       x   x   x   ○   ○   ○       where walks go, as far as they will have come in a moment
///   recorded    7 8 9, 80, 10 …             in the order of first use      } first the one of the two in which touches
///   near        ..|.....x..........|..      the window around a touch,     } of late have been the more frequent, for
///               x+1, x+2 …                  then far behind it             } each page that it has
///   rest        |#####|##   |     |         areas of memory, the one with most touches first
/// ```
///
/// A pure value: touches and the time in, runs of pages out, each page at most once. Only the order is guessed: every page
/// goes, and a page that somebody waits for does not come this way.
public struct PushOrder: Sendable {
    public enum Reason: Sendable { case trend, recorded, near, rest }
    public struct Run: Equatable, Sendable {
        public let first: PageNumber
        public let count: Int
        public let reason: Reason
    }

    /// How far behind a fault its neighbourhood goes.
    public static let reachPages = 1024
    /// Faults that are remembered.
    public static let pointsMax = 8
    /// Pages of the window around a touched one.
    public static let windowPages = 16

    private struct Point: Sendable {
        var next: PageNumber
        var end: PageNumber
    }

    private let prefetch: Prefetch
    private var due: PageSet
    private var predictor: AccessPredictor?
    /// What is left of the steps that the predictor gave last.
    private var walk: AccessPredictor.Walk?
    private var recorded: ArraySlice<AccessRecord.Run>
    /// Recorded and still due.
    private var recordedSet: PageSet
    private var recordedLeft = 0
    /// What is left of windows around touches; newest last.
    private var around: [Point] = []
    /// What is left behind touches; newest last.
    private var points: [Point] = []
    /// Chance of a page to be touched next, by where touches went of late.
    private var chance = (recorded: 0.0, near: 0.0)
    /// What an earlier touch counts for beside a later one.
    private static let fading = 0.95
    /// Touches that a record is worth before the first one has come.
    private static let trust = 4.0
    private var areas: TouchedAreas
    /// What is left of the area whose turn it is.
    private var sweep: Range<PageNumber> = 0..<0

    /// - Parameters:
    ///   - record: what the guest used last, until a moment ago.
    ///   - ms: the time now.
    public init(_ due: PageSet, _ prefetch: Prefetch = .trend, record: AccessRecord = AccessRecord(), ms: Double = 0) {
        self.due = due
        self.prefetch = prefetch
        recordedSet = PageSet(pageCount: due.pageCount)
        switch prefetch {
        case .sweep, .near: recorded = []
        case .recorded, .given: recorded = record.runs[...]
        case .trend:
            let predictor = AccessPredictor(pageCount: due.pageCount, record, endMs: ms)
            let runs = record.runs
            recorded =
                (runs.filter { !predictor.walked.contains($0.first) }
                + runs.filter { predictor.walked.contains($0.first) })[...]
            self.predictor = predictor
        }
        areas = TouchedAreas(pageCount: due.pageCount)
        for run in recorded { recordedSet.insert(first: run.first, count: Int(run.count)) }
        let known = prefetch.usesRecord ? record.runs : []
        for run in known { for page in run.first..<run.first + run.count { areas.touched(page) } }
        recordedSet.formIntersection(due)
        recordedLeft = recordedSet.count
        chance.recorded = Self.trust / Double(max(recordedLeft, 1))
    }

    /// Somebody waits for this page, which goes another way.
    ///
    /// - Returns: false: it was on its way already.
    @discardableResult
    public mutating func touched(_ page: PageNumber, ms: Double) -> Bool {
        guard page < due.pageCount else { return false }
        let wasDue = due.contains(page)
        learn(page)
        remove(page, 1)
        if prefetch.followsTouches { foresee(page, ms) }
        return wasDue
    }

    /// Where would this page have come from soonest?
    private mutating func learn(_ page: PageNumber) {
        let near = points.reduce(0) { $0 + Int($1.end - $1.next) }
        let isNear = points.contains { page >= $0.next && page < $0.end }
        let isRecorded = recordedSet.contains(page)
        chance.near = Self.fading * chance.near + (isNear ? 1 / Double(max(near, Self.windowPages)) : 0)
        chance.recorded =
            Self.fading * chance.recorded + (isRecorded ? 1 / Double(max(recordedLeft, Self.windowPages)) : 0)
    }

    private mutating func foresee(_ page: PageNumber, _ ms: Double) {
        areas.touched(page)
        let follows = predictor?.touched(page, ms: ms, missing: due) ?? false
        if !follows {
            Self.note(page & ~PageNumber(Self.windowPages - 1), Self.windowPages, in: &around, due.pageCount)
        }
        // A point that has come this far already is the same program, going on.
        if let index = points.firstIndex(where: { page >= $0.next &- 64 && page <= $0.next }) {
            points.remove(at: index)
        }
        Self.note(page, Self.reachPages, in: &points, due.pageCount)
    }

    private static func note(_ start: PageNumber, _ pages: Int, in list: inout [Point], _ pageCount: PageNumber) {
        if list.count == pointsMax { list.removeFirst() }
        let end = min(UInt64(start) + UInt64(pages), UInt64(pageCount))
        list.append(Point(next: start, end: PageNumber(end)))
    }

    /// The next run, of at most `limit` pages within one stripe of 64, which is then no longer due; nil: nothing is.
    public mutating func next(ms: Double, limit: Int = 64) -> Run? {
        if let run = ahead(ms: ms, limit) { return run }
        let isNearFirst = chance.near > chance.recorded
        if isNearFirst, let run = nextNear(limit) { return run }
        if let run = nextRecorded(limit) { return run }
        if !isNearFirst, let run = nextNear(limit) { return run }
        return nextRest(limit)
    }

    private mutating func nextRest(_ limit: Int) -> Run? {
        while true {
            if let run = take(sweep.lowerBound, sweep.upperBound, limit, .rest) {
                sweep = run.first + PageNumber(run.count)..<sweep.upperBound
                return run
            }
            guard let area = areas.takeNext() else { return nil }
            sweep = area
        }
    }

    /// As ``next(ms:limit:)``, but only from windows around touches.
    public mutating func nextAround(limit: Int = 64) -> Run? { next(of: \.around, limit) }

    private mutating func nextNear(_ limit: Int) -> Run? { nextAround(limit: limit) ?? next(of: \.points, limit) }

    private mutating func nextRecorded(_ limit: Int) -> Run? {
        while let run = recorded.first {
            if let taken = take(run.first, run.first + run.count, limit, .recorded) { return taken }
            recorded.removeFirst()
        }
        return nil
    }

    /// A walk is given some steps at a time, so that pages next to each other travel together.
    private mutating func ahead(ms: Double, _ limit: Int) -> Run? {
        while true {
            while let left = walk, left.count > 0 {
                let isDense = left.stride == 1
                let end = left.first + PageNumber(isDense ? left.count : 1)
                let run = take(left.first, end, limit, .trend)
                let passed = isDense ? Int((run.map { $0.first + PageNumber($0.count) } ?? end) - left.first) : 1
                walk?.first &+= PageNumber(passed * left.stride)
                walk?.count -= passed
                if let run { return run }
            }
            walk = predictor?.next(ms: ms, limit: Self.windowPages)
            if walk == nil { return nil }
        }
    }

    private mutating func next(of list: WritableKeyPath<PushOrder, [Point]>, _ limit: Int) -> Run? {
        while let point = self[keyPath: list].last {
            if let run = take(point.next, point.end, limit, .near) {
                self[keyPath: list][self[keyPath: list].count - 1].next = run.first + PageNumber(run.count)
                return run
            }
            self[keyPath: list].removeLast()
        }
        return nil
    }

    private mutating func take(_ start: PageNumber, _ end: PageNumber, _ limit: Int, _ reason: Reason) -> Run? {
        guard let found = due.nextStripeRun(from: start, to: end) else { return nil }
        let count = min(found.count, limit)
        remove(found.first, count)
        return Run(first: found.first, count: count, reason: reason)
    }

    private mutating func remove(_ first: PageNumber, _ count: Int) {
        due.remove(first: first, count: count)
        guard recordedLeft > 0 else { return }
        for page in first..<first + PageNumber(count) where recordedSet.contains(page) {
            recordedSet.remove(first: page, count: 1)
            recordedLeft -= 1
        }
    }
}
