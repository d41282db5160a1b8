/// A few ascending ranges of pages, such as the RAM blocks that a receiver can patch.
public struct PageRanges: Equatable, Sendable {
    public private(set) var ranges: [Range<PageNumber>] = []

    public init() {}

    /// Adds a range behind the last one; neighbours become one. False when there are too many, or it lies before the end
    /// of the last one, or it is empty.
    @discardableResult
    public mutating func append(_ range: Range<PageNumber>) -> Bool {
        guard !range.isEmpty, range.lowerBound >= ranges.last?.upperBound ?? 0 else { return false }
        if let last = ranges.last, last.upperBound == range.lowerBound {
            ranges[ranges.count - 1] = last.lowerBound..<range.upperBound
            return true
        }
        guard ranges.count < Limits.patchableRanges else { return false }
        ranges.append(range)
        return true
    }

    /// Most VMs have one range, or the page is in the first.
    @inline(__always)
    public func contains(_ page: PageNumber) -> Bool {
        for range in ranges where page < range.upperBound { return page >= range.lowerBound }
        return false
    }
}
