import ApusMemory
import Testing

@Suite struct KeptPagesTests {
    private func layout(_ blocks: [(String, Int)]) throws -> Layout {
        try Layout(blocks.map { (name: $0.0, byteCount: UInt64($0.1) * 4096) })
    }

    /// A stream of any length: what stays is what came last as data, among blocks that may stay, by their own numbers.
    @Test func whatCameLastDecides() throws {
        let stream = try layout([("ram0", 300), ("rom", 50), ("ram1", 200)])
        let fetchable = try layout([("ram1", 200), ("ram0", 300)])
        var kept = try #require(KeptPages(fetchable, of: stream))
        var random = SystemRandomNumberGenerator()
        var expected: Set<PageNumber> = []
        for _ in 0..<5000 {
            let page = PageNumber(random.next() % 550)
            let block = try #require(stream.block(of: page))
            let own: PageNumber? = block == 0 ? page + 200 : block == 1 ? nil : page - 350
            if random.next() % 3 == 0 {
                kept.letGo(page, of: block)
                own.map { _ = expected.remove($0) }
            } else {
                #expect(kept.keep(page, of: block) == (own != nil))
                own.map { _ = expected.insert($0) }
            }
        }
        #expect((0..<500).filter { kept.pages.contains($0) } == expected.sorted())
        #expect(kept.pages.pageCount == 500)
    }

    /// The last pass first, of it what came in the one before too; older ones are one. The first pass tells nothing.
    @Test func laterPassesTellWhatWasWritten() throws {
        let layout = try layout([("ram", 1000)])
        var kept = try #require(KeptPages(layout, of: layout, isFirstPass: true))
        for page in 0..<PageNumber(500) { _ = kept.keep(page, of: 0) }
        #expect(kept.written.pageCount == 0)
        for pass in 0..<PageNumber(20) {
            kept.beginPass()
            _ = kept.keep(100 + 2 * pass, of: 0)
            _ = kept.keep(200 + 2 * pass, of: 0)
            if pass >= 18 { _ = kept.keep(900, of: 0) }
        }
        let order: [PageNumber] = kept.written.runs.flatMap { Array($0.first..<$0.first + $0.count) }
        let newest: [PageNumber] = [900, 138, 238, 136, 236, 134, 234]
        #expect(Array(order.prefix(7)) == newest)
        // What came in the oldest passes is in no order but its own.
        let oldest: [PageNumber] = [100, 200].flatMap { base in (0..<13).map { base + 2 * $0 } }
        #expect(Array(order.suffix(26)) == oldest)
        #expect(kept.pages.count == 501)
    }

    @Test func passesTellFromTheFirstOnWhereItIsOver() throws {
        let layout = try layout([("ram", 1000)])
        var kept = try #require(KeptPages(layout, of: layout))
        _ = kept.keep(7, of: 0)
        #expect(kept.written.runs.map(\.first) == [7])
        kept.beginPass()
        #expect(kept.written.runs.map(\.first) == [7])
    }

    @Test func runsAreOfAnyLength() {
        var set = PageSet(pageCount: 1000)
        for (first, count) in [(0, 1), (60, 200), (320, 64), (384, 1), (990, 10)] as [(PageNumber, Int)] {
            set.insert(first: first, count: count)
        }
        var runs: [Range<PageNumber>] = []
        var page: PageNumber = 0
        while let run = set.nextRun(from: page, to: 1000) {
            runs.append(run)
            page = run.upperBound
        }
        #expect(runs == [0..<1, 60..<260, 320..<385, 990..<1000])
        #expect(set.nextRun(from: 100, to: 128) == 100..<128)
        #expect(set.nextRun(from: 260, to: 320) == nil)
    }

    @Test func blocksThatAreNotThere() throws {
        let stream = try layout([("ram", 300), ("rom", 50)])
        #expect(KeptPages(try layout([("ram", 299)]), of: stream) == nil)
        #expect(KeptPages(try layout([("ram", 300), ("vga", 16)]), of: stream) == nil)
        #expect(KeptPages(try layout([]), of: stream)?.pages.count == 0)
    }
}
