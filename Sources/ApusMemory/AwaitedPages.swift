/// Pages of a receiving lane whose content is being read elsewhere, and which of them are still wanted: whatever newer
/// comes of a page makes the older reference to it void.
///
/// ```
///              begin, add                    take: what is proved is installed, the rest is asked for
///   (nothing) ------------> wanted -------------------------------------------------------------> (nothing)
///                              |                                                                      ^
///                              `-- newer content, or a newer reference --> void -- take: nothing -----'
/// ```
///
/// Only the lane's own thread changes it and installs pages, so between the look and the installing nothing can come.
public struct AwaitedPages: Sendable {
    /// A frame of references.
    public struct Frame: Sendable {
        public let number: UInt32
        public fileprivate(set) var pages = InlineArray<64, PageNumber>(repeating: 0)
        public fileprivate(set) var count = 0
        /// Bit n: the nth page may be installed.
        public fileprivate(set) var wanted: UInt64 = 0

        fileprivate init(number: UInt32) { self.number = number }
    }

    private var frames: [Frame] = []
    private var members: PageSet
    /// Pages that are wanted.
    public private(set) var wantedCount = 0

    public init(pageCount: PageNumber) {
        members = PageSet(pageCount: pageCount)
        frames.reserveCapacity(Limits.referencesInFlight)
    }

    public var hasFrames: Bool { !frames.isEmpty }

    /// A new frame; its pages follow with ``add(_:)``.
    public mutating func begin(_ number: UInt32) { frames.append(Frame(number: number)) }

    /// The next page of the newest frame; older references to it are void.
    public mutating func add(_ page: PageNumber) {
        supersede(first: page, count: 1)
        let last = frames.count - 1
        let index = frames[last].count
        precondition(index < Limits.batchPages)
        frames[last].pages[index] = page
        frames[last].wanted |= 1 << UInt64(index)
        frames[last].count = index + 1
        members.insert(first: page, count: 1)
        wantedCount += 1
    }

    /// Newer content of these pages is here.
    @inline(__always)
    public mutating func supersede(first: PageNumber, count: Int) {
        if wantedCount > 0 { void(first..<first + PageNumber(count)) }
    }

    private mutating func void(_ range: Range<PageNumber>) {
        guard members.nextStripeRun(from: range.lowerBound, to: range.upperBound) != nil else { return }
        for index in frames.indices {
            for place in 0..<frames[index].count where frames[index].wanted & (1 << UInt64(place)) != 0 {
                let page = frames[index].pages[place]
                guard range.contains(page) else { continue }
                frames[index].wanted &= ~(1 << UInt64(place))
                members.remove(first: page, count: 1)
                wantedCount -= 1
            }
        }
    }

    /// Takes a frame out, as its pages are known now; nil: it was dropped.
    public mutating func take(_ number: UInt32) -> Frame? {
        guard let index = frames.firstIndex(where: { $0.number == number }) else { return nil }
        let frame = frames.remove(at: index)
        for place in 0..<frame.count where frame.wanted & (1 << UInt64(place)) != 0 {
            members.remove(first: frame.pages[place], count: 1)
            wantedCount -= 1
        }
        return frame
    }

    /// Nobody waits for any of them any more: their pages will come again.
    public mutating func dropAll() { while let frame = frames.last { _ = take(frame.number) } }
}
