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

    @Test func aWindowIsAlignedAndHoldsWhatIsMissing() {
        let residence = Residence(missing: set([15, 16, 17, 20, 31, 32, 63, 64]))
        func runs(_ page: PageNumber, _ pages: Int) -> [[Int]] {
            var runs: [[Int]] = []
            residence.eachMissingRun(around: page, pages: pages) { runs.append([Int($0), $1]) }
            return runs
        }
        #expect(runs(18, 16) == [[16, 2], [20, 1], [31, 1]])
        #expect(runs(5, 16) == [[15, 1]])
        #expect(runs(0, 64) == [[15, 3], [20, 1], [31, 2], [63, 1]])
        #expect(runs(900, 16) == [])
    }

    @Test func pushesBeginAtTheFaultsAndMissNothing() {
        var order = PushOrder(set(Array(0..<5000), of: 5000))
        #expect(order.next().map { [Int($0.first), $0.count] } == [0, 64])
        order.faulted(at: 3000)
        #expect(order.next().map { [Int($0.first), $0.count] } == [3000, 8])
        // Answered on the urgent connection.
        order.remove(first: 3008, count: 64)
        #expect(order.next().map { [Int($0.first), $0.count] } == [3072, 64])
        // The newest first; beyond its reach the one before goes on.
        order.faulted(at: 4990)
        #expect(order.next().map { [Int($0.first), $0.count] } == [4990, 2])
        #expect(order.next().map { [Int($0.first), $0.count] } == [4992, 8])
        #expect(order.next().map { [Int($0.first), $0.count] } == [3136, 64])
        var left = Set(0..<5000).subtracting(0..<64).subtracting(3000..<3200).subtracting(4990..<5000)
        while let run = order.next() {
            #expect(Int(run.first) % 64 + run.count <= 64)
            for page in Int(run.first)..<Int(run.first) + run.count {
                #expect(left.remove(page) != nil, "\(page) twice")
            }
        }
        #expect(left == [])
    }

    @Test func aProgramThatGoesOnIsOnePoint() {
        var order = PushOrder(set(Array(0..<5000), of: 5000))
        order.faulted(at: 100)
        var next: PageNumber = 100
        // It runs into the pages that were about to come, many more times than points are remembered.
        for _ in 0..<20 {
            order.faulted(at: next)
            guard let run = order.next() else { break }
            #expect(run.first == next)
            next += PageNumber(run.count)
        }
        order.faulted(at: 6000)
        #expect(order.next()?.first == next)
    }
}
