public import ApusSystem

/// How pages are expressed on the wire. Zero is no form.
public enum Form: UInt8, Sendable, CaseIterable {
    /// All bytes zero; no data.
    case zero = 1
    /// 4096 bytes a page.
    case raw = 2
    /// Part of the batch's compressed body.
    case squeezed = 3
    // 4 to 9 are kept. References to content elsewhere travel in frames of their own.
}

/// Consecutive pages in one form; never empty, never across two RAM blocks.
public struct PageRecord: Equatable, Sendable {
    public var first: PageNumber
    public var count: UInt16
    public var form: Form

    public init(first: PageNumber, count: UInt16, form: Form) {
        self.first = first
        self.count = count
        self.form = form
    }
}

/// The unit that a lane works on: up to 64 pages of data and any number of zero pages, in ascending order of page number
/// and each page at most once, so that records may be installed in any order.
///
/// ```
///   records   [ raw 100..103 ][ zero 104..4000 ][ raw 4001 ]
///   data      |100|101|102|103|4001| ...                      64 slots of 4096 bytes
/// ```
public struct Batch: ~Copyable, Sendable {
    public private(set) var records = InlineArray<128, PageRecord>(
        repeating: PageRecord(first: 0, count: 0, form: .zero))
    public private(set) var recordCount = 0
    public private(set) var dataPages = 0
    public var data: PageBuffer

    public init() { data = PageBuffer(byteCount: Limits.batchPages * Limits.pageBytes) }

    public func hasRecords() -> Bool { recordCount > 0 }
    public func hasNoRoomForData() -> Bool { dataPages == Limits.batchPages }

    public mutating func reset() {
        recordCount = 0
        dataPages = 0
    }

    /// False when the page has no room here, or does not lie behind the last one: send this batch first.
    ///
    /// - Parameter startsBlock: the page is the first of its RAM block, and so needs a record of its own.
    @inline(__always)
    public func accepts(_ page: PageNumber, form: Form, startsBlock: Bool) -> Bool {
        if recordCount == 0 { return true }
        if form != .zero && dataPages == Limits.batchPages { return false }
        let last = records[recordCount - 1]
        let next = last.first &+ UInt32(last.count)
        if page < next { return false }
        if recordCount < Limits.batchRecords { return true }
        return page == next && form == last.form && last.count < Limits.runPages && !startsBlock
    }

    /// Adds a zero page; ``accepts(_:form:startsBlock:)`` must be true.
    /// - Parameter startsBlock: the page is the first of its RAM block; a run never crosses two.
    @inline(__always)
    public mutating func addZero(_ page: PageNumber, startsBlock: Bool) {
        extend(page, .zero, startsBlock)
    }

    /// Adds a page of data; ``accepts(_:form:startsBlock:)`` must be true.
    @inline(__always)
    public mutating func add(_ page: PageNumber, _ bytes: RawSpan, startsBlock: Bool) {
        precondition(bytes.byteCount == Limits.pageBytes && dataPages < Limits.batchPages)
        data.write(bytes, at: dataPages * Limits.pageBytes)
        dataPages += 1
        extend(page, .raw, startsBlock)
    }

    /// Adds up to `count` consecutive pages of data that `fill` copies to the byte offset it is given, all at once.
    ///
    /// - Returns: how many pages found room; 0 when ``accepts(_:form:startsBlock:)`` is false.
    @inline(__always)
    public mutating func addRun(
        _ first: PageNumber, count: Int, startsBlock: Bool, _ fill: (inout PageBuffer, _ at: Int, _ pages: Int) -> Void
    ) -> Int {
        guard accepts(first, form: .raw, startsBlock: startsBlock) else { return 0 }
        let pages = min(count, Limits.batchPages - dataPages)
        fill(&data, dataPages * Limits.pageBytes, pages)
        dataPages += pages
        for page in 0..<pages { extend(first + PageNumber(page), .raw, startsBlock && page == 0) }
        return pages
    }

    /// Takes pages of data out, closing the gaps. Bit n of `slots` is the nth page of data; the runs that are left must fit
    /// into the batch's records: each page taken out of a run's middle makes one more.
    public mutating func remove(slots: UInt64) {
        if slots == 0 { return }
        let old = records
        let oldCount = recordCount
        recordCount = 0
        dataPages = 0
        var slot = 0
        for index in 0..<oldCount {
            let record = old[index]
            guard record.form != .zero else {
                append(record)
                continue
            }
            var run = PageRecord(first: record.first, count: 0, form: record.form)
            for page in record.first..<record.first + PageNumber(record.count) {
                defer { slot += 1 }
                if slots & (1 << UInt64(slot)) != 0 {
                    if run.count > 0 { append(run) }
                    run = PageRecord(first: page + 1, count: 0, form: record.form)
                    continue
                }
                if dataPages != slot {
                    data.copyWithin(from: slot * Limits.pageBytes, to: dataPages * Limits.pageBytes, Limits.pageBytes)
                }
                dataPages += 1
                run.count += 1
            }
            if run.count > 0 { append(run) }
        }
    }

    private mutating func append(_ record: PageRecord) {
        precondition(recordCount < Limits.batchRecords)
        records[recordCount] = record
        recordCount += 1
    }

    @inline(__always)
    private mutating func extend(_ page: PageNumber, _ form: Form, _ startsBlock: Bool) {
        if recordCount > 0 && !startsBlock {
            let last = records[recordCount - 1]
            if last.form == form && page == last.first &+ UInt32(last.count) && last.count < Limits.runPages {
                records[recordCount - 1].count = last.count + 1
                return
            }
        }
        append(PageRecord(first: page, count: 1, form: form))
    }
}
