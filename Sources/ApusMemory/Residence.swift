/// Who homes each page of a VM that runs at its destination already. Each page has exactly one owner, and changes it once:
///
/// ```
///   source --- flip ---> destination                              what had arrived by then
///      `------ flip ---> missing ------ settle ------> destination
/// ```
///
/// Before the flip the source homes everything, and no such value exists. Afterwards it holds the only copy of what is
/// missing, which its stopped guest cannot change any more.
public struct Residence: Equatable, Sendable {
    public enum Home: Equatable, Sendable { case source, destination }

    public private(set) var missing: PageSet
    public private(set) var missingCount: Int

    public init(missing: PageSet) {
        self.missing = missing
        missingCount = missing.count
    }

    public var pageCount: PageNumber { missing.pageCount }
    public var isWhole: Bool { missingCount == 0 }

    /// Traps outside the VM.
    public func home(of page: PageNumber) -> Home { missing.contains(page) ? .source : .destination }

    /// These pages are at the destination now; some may have been before. Calls `changed` with index and content of each
    /// word of the bitmap that is another one afterwards.
    ///
    /// - Returns: how many pages have changed their home.
    @discardableResult
    public mutating func settle(first: PageNumber, count: Int, _ changed: (Int, UInt64) -> Void = { _, _ in }) -> Int {
        precondition(count >= 0 && UInt64(first) + UInt64(count) <= UInt64(pageCount))
        var settled = 0
        var page = Int(first)
        let end = page + count
        while page < end {
            let take = min(64 - page & 63, end - page)
            let mask = PageSet.mask(bit: page & 63, count: take)
            let word = missing[word: page >> 6]
            if word & mask != 0 {
                settled += (word & mask).nonzeroBitCount
                missing[word: page >> 6] = word & ~mask
                changed(page >> 6, word & ~mask)
            }
            page += take
        }
        missingCount -= settled
        return settled
    }
}
