/// Pages of QEMU's stream that stay at the source when the guest moves: noted as they come by, and dropped.
///
/// ```
///   blocks of the stream    pc.ram | vga.vram | pc.bios ...
///   fetchable               pc.ram                              the others always travel
///
///   data comes              the page stays: its newest content is here
///   zeros come              they travel, which costs next to nothing: the page does not stay
/// ```
///
/// Since QEMU brings a page again only when it was written, the passes also tell what the guest wrote last:
///
/// ```
///   pass       first                     second      third   ...  guest stopped
///   brings     everything: no news       written before it        written in its last moment
/// ```
///
/// A pure value. Pages come in with their numbers in the stream, and are noted with those among the fetchable blocks, which
/// both sides have agreed on.
public struct KeptPages: Equatable, Sendable {
    /// By their numbers among the fetchable blocks.
    public private(set) var pages: PageSet
    /// From a number in the stream to one among the fetchable blocks, by block of the stream; nil: it travels.
    private let shifts: [Int64?]
    /// What came in the last passes, the newest last; of those before, all together.
    private var passes: [PageSet]
    private static let passesMax = 8
    private var isFirstPass: Bool

    /// - Parameter isFirstPass: of QEMU's way through all of memory, which brings what was not written too.
    /// - Returns: nil when the stream lacks a fetchable block, or has it with another length.
    public init?(_ fetchable: Layout, of stream: Layout, isFirstPass: Bool = false) {
        var shifts = [Int64?](repeating: nil, count: stream.blocks.count)
        for block in fetchable.blocks {
            guard
                let index = stream.blocks.firstIndex(where: {
                    $0.name == block.name && $0.byteCount == block.byteCount
                })
            else { return nil }
            shifts[index] = Int64(block.firstPage) - Int64(stream.blocks[index].firstPage)
        }
        self.shifts = shifts
        pages = PageSet(pageCount: fetchable.pageCount)
        passes = [pages]
        self.isFirstPass = isFirstPass
    }

    /// What comes from here on was written since the pass before began.
    public mutating func beginPass() {
        defer { isFirstPass = false }
        if isFirstPass { return }
        if passes.count == Self.passesMax {
            let oldest = passes.removeFirst()
            passes[0].formUnion(oldest)
        }
        passes.append(PageSet(pageCount: pages.pageCount))
    }

    /// What the guest wrote, the likeliest to be used next first: what it wrote in both of its last moments, then the latest.
    public var written: AccessRecord {
        guard var hot = passes.last, passes.count > 1 else { return AccessRecord(written: passes) }
        hot.formIntersection(passes[passes.count - 2])
        return AccessRecord(written: [hot] + passes.reversed())
    }

    /// Data of a page of this block of the stream. True: it stays. False: it has to travel.
    @inline(__always)
    public mutating func keep(_ page: PageNumber, of block: Int) -> Bool {
        guard let shift = shifts[block] else { return false }
        let own = PageNumber(Int64(page) + shift)
        pages.insert(first: own, count: 1)
        if !isFirstPass { passes[passes.count - 1].insert(first: own, count: 1) }
        return true
    }

    /// The page has become zeros, which travel.
    @inline(__always)
    public mutating func letGo(_ page: PageNumber, of block: Int) {
        guard let shift = shifts[block] else { return }
        pages.remove(first: PageNumber(Int64(page) + shift), count: 1)
    }
}
