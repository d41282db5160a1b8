/// A set of pages as a bitmap; 1/32768 of the RAM it describes.
public struct PageSet: Equatable, Sendable {
    private var words: [UInt64]
    public let pageCount: PageNumber

    public init(pageCount: PageNumber) {
        self.pageCount = pageCount
        words = [UInt64](repeating: 0, count: (Int(pageCount) + 63) / 64)
    }

    /// Traps outside the VM.
    public func contains(_ page: PageNumber) -> Bool {
        precondition(page < pageCount)
        return words[Int(page >> 6)] & (1 << UInt64(page & 63)) != 0
    }

    /// Adds a run; traps outside the VM.
    public mutating func insert(first: PageNumber, count: Int) {
        eachWord(first, count) { $0 |= $1 }
    }

    /// Takes a run out; traps outside the VM.
    public mutating func remove(first: PageNumber, count: Int) {
        eachWord(first, count) { $0 &= ~$1 }
    }

    @inline(__always)
    private mutating func eachWord(_ first: PageNumber, _ count: Int, _ change: (inout UInt64, UInt64) -> Void) {
        precondition(count >= 0 && UInt64(first) + UInt64(count) <= UInt64(pageCount))
        var page = Int(first)
        let end = page + count
        while page < end {
            let bit = page & 63
            let take = min(64 - bit, end - page)
            change(&words[page >> 6], Self.mask(bit: bit, count: take))
            page += take
        }
    }

    /// Adds the members of another set of the same VM.
    public mutating func formUnion(_ other: PageSet) {
        precondition(other.pageCount == pageCount)
        for index in words.indices { words[index] |= other.words[index] }
    }

    /// Keeps only the members of another set of the same VM.
    public mutating func formIntersection(_ other: PageSet) {
        precondition(other.pageCount == pageCount)
        for index in words.indices { words[index] &= other.words[index] }
    }

    /// Takes the members of another set of the same VM out.
    public mutating func subtract(_ other: PageSet) {
        precondition(other.pageCount == pageCount)
        for index in words.indices { words[index] &= ~other.words[index] }
    }

    private func wordMask(_ index: Int) -> UInt64 {
        Self.mask(bit: 0, count: min(64, Int(pageCount) - index * 64))
    }

    /// Bits of one word; `bit + count` is at most 64.
    public static func mask(bit: Int, count: Int) -> UInt64 {
        count == 64 ? .max : ((1 << UInt64(count)) - 1) << UInt64(bit)
    }

    /// The first run of members at or behind `start` and before `end`, within one stripe of 64 pages.
    public func nextStripeRun(from start: PageNumber, to end: PageNumber) -> (first: PageNumber, count: Int)? {
        var page = Int(start)
        let end = min(Int(end), Int(pageCount))
        while page < end {
            let word = words[page >> 6] >> UInt64(page & 63)
            if word == 0 {
                page = (page | 63) + 1
                continue
            }
            let first = page + word.trailingZeroBitCount
            guard first < end else { return nil }
            let members = (~(words[first >> 6] >> UInt64(first & 63))).trailingZeroBitCount
            return (PageNumber(first), min(members, 64 - first & 63, end - first))
        }
        return nil
    }

    /// The first run of members at or behind `start` and before `end`, of any length.
    public func nextRun(from start: PageNumber, to end: PageNumber) -> Range<PageNumber>? {
        guard let first = nextStripeRun(from: start, to: end) else { return nil }
        var next = first.first + PageNumber(first.count)
        while next & 63 == 0, let more = nextStripeRun(from: next, to: end), more.first == next {
            next += PageNumber(more.count)
        }
        return first.first..<next
    }

    public var count: Int { words.reduce(0) { $0 + $1.nonzeroBitCount } }

    /// Words of 64 pages each, the lowest page as the lowest bit.
    public var wordCount: Int { words.count }
    /// Bits behind the last page are never set.
    public subscript(word index: Int) -> UInt64 {
        get { words[index] }
        set { words[index] = newValue & wordMask(index) }
    }

    /// Calls `body` for each run of consecutive members, ascending; a run ends at the latest where a stripe of 64 pages
    /// does, so that it lies on one lane.
    public func forEachStripeRun<E: Error>(_ body: (_ first: PageNumber, _ count: Int) throws(E) -> Void) throws(E) {
        for index in words.indices {
            var word = words[index]
            while word != 0 {
                let start = word.trailingZeroBitCount
                let count = (~(word >> UInt64(start))).trailingZeroBitCount
                try body(PageNumber(index << 6 + start), min(count, 64 - start))
                if start + count >= 64 { break }
                word &= ~0 << UInt64(start + count)
            }
        }
    }

    /// Length of the run that begins at `page`, within `count`, whose members are all in (or all not in) the set.
    public func uniformRun(from page: PageNumber, count: Int) -> (inSet: Bool, count: Int) {
        let inSet = contains(page)
        let end = Int(page) + count
        var next = Int(page) + 1
        while next < end {
            let bit = next & 63
            let word = inSet ? ~words[next >> 6] : words[next >> 6]
            let ahead = word >> UInt64(bit)
            if ahead != 0 { return (inSet, min(next + ahead.trailingZeroBitCount, end) - Int(page)) }
            next += 64 - bit
        }
        return (inSet, count)
    }
}
