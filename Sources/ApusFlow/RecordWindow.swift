internal import ApusMemory

/// When a record is long enough, and whether it says what the guest will use. A pure value.
///
/// ```
///   slices of 50 ms    first   2nd    …                now
///   new pages           900    400   310  250  200     160      1 - 160/400: so many of its touches go where it has been
///                      burst  steady
/// ```
///
/// As long as pages travel meanwhile, waiting costs nothing: the record ends when few touches of missing pages are expected
/// after the switch. Where nothing travels it costs time, and ends when the set hardly grows.
struct RecordWindow: Sendable {
    private let msMax: Double
    private let dataPages: Int
    private var sliceStartMs = 0.0
    private var slicePages = 0
    private var firstSlicePages: Int?
    /// New pages of a slice when the guest had been nowhere yet, and of late.
    private var steadyPages = 0.0
    private var recentPages: Double?
    /// Slices in a row after which hardly a fault was expected.
    private var quietSlices = 0
    private(set) var pages = 0
    private(set) var isOver = false

    static let sliceMs = 50.0
    /// Where nothing travels the window costs time, and is this much of what it could be.
    static let idleShare = 0.5
    /// A slice with no more than this share of the first one's new pages, which is a burst.
    static let flatShare = 0.03
    /// Faults that are not worth waiting for.
    static let faultsFew = 16.0
    /// In a row, for a guest may have had no processor for one.
    static let quietSlicesMin = 4
    /// Below it, that fewer pages are new may be chance.
    private static let returnShareMin = 0.25

    /// - Parameter dataPages: pages that the guest has.
    init(msMax: Double, dataPages: Int) {
        self.msMax = msMax
        self.dataPages = dataPages
    }

    /// A look has found so many pages for the first time.
    ///
    /// - Parameter leftMs: what the link needs for all that has not travelled; nil: nothing travels meanwhile.
    /// - Returns: a slice is complete.
    @discardableResult
    mutating func found(_ count: Int, ms: Double, leftMs: Double?) -> Bool {
        pages += count
        slicePages += count
        if ms >= msMax { isOver = true }
        // More than could be sent first.
        if leftMs == nil && pages * 2 >= dataPages { isOver = true }
        guard ms - sliceStartMs >= Self.sliceMs else { return false }
        close(ms - sliceStartMs, leftMs)
        sliceStartMs = ms
        slicePages = 0
        return true
    }

    private mutating func close(_ lengthMs: Double, _ leftMs: Double?) {
        guard let first = firstSlicePages else {
            firstSlicePages = slicePages
            return
        }
        let found = Double(slicePages) * Self.sliceMs / lengthMs
        let recent = recentPages.map { $0 + 0.3 * (found - $0) } ?? found
        recentPages = recent
        steadyPages = max(steadyPages, recent)
        if let leftMs {
            // What is touched for the first time is missing still in half of all cases: it comes bit by bit.
            let faults = recent / Self.sliceMs * leftMs / 2
            quietSlices = faults <= Self.faultsFew ? quietSlices + 1 : 0
            if quietSlices >= Self.quietSlicesMin { isOver = true }
        } else if Double(slicePages) <= Double(first) * Self.flatShare {
            isOver = true
        }
    }

    /// A page that was used is likelier to be touched next than one that was not.
    var comesBack: Bool {
        guard let recentPages, steadyPages > 0 else { return false }
        let returns = 1 - recentPages / steadyPages
        return returns >= Self.returnShareMin
            && returns * Double(dataPages - pages) > (1 - returns) * Double(pages)
    }
}

/// What of a guest's memory can travel while it is recorded what it uses: what it has not used, and what it has used a
/// while ago and not written since. What it writes afterwards is missing again.
struct EarlyPages: Sendable {
    private var unused: ArraySlice<(first: PageNumber, count: Int)>
    private var page: PageNumber = 0
    /// The run of the record whose turn it is, and what of it has had it.
    private var usedIndex = 0
    private var usedDone = 0

    /// Pages that are read are often written right after that.
    static let settlingMs: Float = 50

    init(_ data: [(first: PageNumber, count: Int)]) { unused = data[...] }

    /// The next run, within one stripe of 64 pages; nil: there is none for now.
    ///
    /// - Parameters:
    ///   - used: what stands in the record.
    ///   - done: what has travelled, or is written.
    ///   - usedFirst: in the order of first use.
    mutating func next(
        _ record: AccessRecord, used: borrowing PageSet, usedFirst: Bool, done: (PageNumber) -> Bool
    ) -> (first: PageNumber, count: Int)? {
        if usedFirst, let run = nextUsed(record, done) { return run }
        return nextUnused(used) ?? nextUsed(record, done)
    }

    private mutating func nextUnused(_ used: borrowing PageSet) -> (first: PageNumber, count: Int)? {
        while let run = unused.first {
            page = max(page, run.first)
            let end = run.first + PageNumber(run.count)
            while page < end {
                let found = used.uniformRun(from: page, count: Int(min(end, (page | 63) + 1) - page))
                defer { page += PageNumber(found.count) }
                if !found.inSet { return (page, found.count) }
            }
            unused.removeFirst()
        }
        return nil
    }

    private mutating func nextUsed(
        _ record: AccessRecord, _ done: (PageNumber) -> Bool
    ) -> (first: PageNumber, count: Int)? {
        while usedIndex < record.runs.count, record.runs[usedIndex].ms <= record.lengthMs - Self.settlingMs {
            let run = record.runs[usedIndex]
            let end = run.first + PageNumber(run.count)
            var first = run.first + PageNumber(usedDone)
            while first < end, done(first) { first += 1 }
            guard first < end else {
                usedIndex += 1
                usedDone = 0
                continue
            }
            var next = first + 1
            while next < end, next & 63 != 0, !done(next) { next += 1 }
            usedDone = Int(next - run.first)
            return (first, Int(next - first))
        }
        return nil
    }
}
