/// Which pages a guest has used, in the order of the first use: what it is likely to use next.
///
/// ```
///   epoch (one look)     5 ms          10 ms         15 ms            what was used in it for the first time
///   runs                 7-9 80        10-14 81      15-19            ascending: within an epoch the order is not known
/// ```
public struct AccessRecord: Equatable, Sendable {
    public struct Run: Equatable, Sendable {
        public var first: PageNumber
        public var count: UInt32
        /// Since the beginning of the record.
        public var ms: Float
    }

    /// Runs of one epoch are together, ascending; no page is in two.
    public private(set) var runs: [Run] = []
    public private(set) var pageCount = 0
    /// From its beginning to the last look.
    public private(set) var lengthMs: Float = 0

    public init() {}

    /// What a guest wrote in its last rounds, for want of what it used: each set is an epoch, the likeliest first. A page
    /// counts in the first that has it.
    public init(written sets: [PageSet]) {
        guard var known = sets.first.map({ PageSet(pageCount: $0.pageCount) }) else { return }
        for set in sets {
            var epoch: [(first: PageNumber, count: Int)] = []
            var fresh = set
            fresh.subtract(known)
            fresh.forEachStripeRun { epoch.append(($0, $1)) }
            add(epoch, ms: 0)
            known.formUnion(set)
        }
    }

    /// An order that somebody gives.
    public init(given runs: [(first: PageNumber, count: Int)]) { add(runs, ms: 0) }

    /// What one look has found.
    public mutating func add(_ epoch: [(first: PageNumber, count: Int)], ms: Float) {
        lengthMs = ms
        for run in epoch {
            runs.append(Run(first: run.first, count: UInt32(run.count), ms: ms))
            pageCount += run.count
        }
    }
}
