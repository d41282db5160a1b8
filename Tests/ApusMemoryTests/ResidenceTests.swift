import ApusMemory
import Testing

@Suite struct ResidenceTests {
    private func set(_ pages: [PageNumber], of count: PageNumber = 1000) -> PageSet {
        var set = PageSet(pageCount: count)
        for page in pages { set.insert(first: page, count: 1) }
        return set
    }

    @Test func everyPageHasOneHomeAndChangesItOnce() {
        var random = SystemRandomNumberGenerator()
        for _ in 0..<50 {
            let missing = (0..<1000).filter { _ in random.next() % 3 == 0 }.map(PageNumber.init)
            var residence = Residence(missing: set(missing))
            var expected = Set(missing)
            var mirror = (0..<16).map { residence.missing[word: $0] }
            while !residence.isWhole {
                let first = PageNumber(random.next() % 1000)
                let count = Int(random.next() % UInt64(1001 - first))
                let settled = residence.settle(first: first, count: count) { mirror[$0] = $1 }
                let gone = expected.filter { $0 >= first && $0 < first + PageNumber(count) }
                #expect(settled == gone.count)
                expected.subtract(gone)
                #expect(residence.missingCount == expected.count)
                #expect(mirror == (0..<16).map { residence.missing[word: $0] })
                let page = PageNumber(random.next() % 1000)
                #expect(residence.home(of: page) == (expected.contains(page) ? .source : .destination))
            }
        }
    }
}
