import ApusMemory
import Testing

private func pages(_ set: PageSet) -> [PageNumber] {
    (0..<set.pageCount).filter { set.contains($0) }
}

@Suite("Dirty rounds") struct DirtyRoundsTests {
    @Test("a page written in two rounds is held, and travels once it cools") func hotPage() {
        var rounds = DirtyRounds(pageCount: 300)
        rounds.insert(first: 5, count: 2)
        #expect(rounds.close(holdLimit: 10) == 2)
        #expect(pages(rounds.ready) == [5, 6] && rounds.heldCount == 0)
        rounds.insert(first: 5, count: 1)
        rounds.insert(first: 200, count: 1)
        #expect(rounds.close(holdLimit: 10) == 2)
        #expect(pages(rounds.ready) == [200] && pages(rounds.held) == [5])
        rounds.insert(first: 5, count: 1)
        rounds.close(holdLimit: 10)
        #expect(rounds.readyCount == 0 && pages(rounds.held) == [5] && rounds.againCount == 1)
        // Not written in this round: it has cooled.
        rounds.close(holdLimit: 10)
        #expect(pages(rounds.ready) == [5] && rounds.heldCount == 0 && rounds.againCount == 0)
    }

    @Test("without a limit to hold, everything travels") func lastRound() {
        var rounds = DirtyRounds(pageCount: 128)
        for _ in 0..<3 {
            rounds.insert(first: 60, count: 10)
            rounds.close(holdLimit: 64)
        }
        #expect(rounds.heldCount == 10)
        rounds.insert(first: 0, count: 1)
        rounds.close(holdLimit: 0)
        #expect(rounds.heldCount == 0 && pages(rounds.ready) == [0] + Array(60..<70))
    }

    @Test("what was not sent after all comes with the next round") func putBack() {
        var rounds = DirtyRounds(pageCount: 128)
        rounds.insert(first: 3, count: 2)
        rounds.close(holdLimit: 0)
        rounds.putBack()
        rounds.insert(first: 100, count: 1)
        #expect(rounds.close(holdLimit: 0) == 3)
        #expect(pages(rounds.ready) == [3, 4, 100])
    }

    /// Whatever is held back, no written page is ever forgotten, and no page travels without cause.
    @Test("every written page is ready or held until it has travelled", arguments: 0..<50) func nothingIsLost(
        seed: UInt64
    ) {
        var random = Seeded(seed)
        let count: PageNumber = 500
        var rounds = DirtyRounds(pageCount: count)
        var stale: Set<PageNumber> = []
        for _ in 0..<60 {
            for _ in 0..<Int.random(in: 0...20, using: &random) {
                let first = PageNumber.random(in: 0..<count, using: &random)
                let length = Int.random(in: 1...min(70, Int(count - first)), using: &random)
                rounds.insert(first: first, count: length)
                stale.formUnion(first..<first + PageNumber(length))
            }
            let limit = Int.random(in: 0...200, using: &random)
            rounds.close(holdLimit: limit)
            let ready = Set(pages(rounds.ready))
            let held = Set(pages(rounds.held))
            #expect(ready.isDisjoint(with: held))
            #expect(ready.union(held) == stale)
            #expect(rounds.readyCount == ready.count && rounds.heldCount == held.count && held.count <= limit)
            var runs: Set<PageNumber> = []
            rounds.ready.forEachStripeRun { first, length in
                #expect(length > 0 && first >> 6 == (first + PageNumber(length) - 1) >> 6)
                runs.formUnion(first..<first + PageNumber(length))
            }
            #expect(runs == ready)
            stale.subtract(ready)
        }
    }
}

@Suite("Batches") struct BatchRunTests {
    @Test("a run takes what room there is, in one record") func run() {
        var batch = Batch()
        var asked: [(Int, Int)] = []
        let first40 = batch.addRun(10, count: 40, startsBlock: false) { asked.append(($1, $2)) }
        let next24 = batch.addRun(50, count: 40, startsBlock: false) { asked.append(($1, $2)) }
        let none = batch.addRun(74, count: 1, startsBlock: false) { asked.append(($1, $2)) }
        #expect((first40, next24, none) == (40, 24, 0))
        #expect(asked.map(\.0) == [0, 40 * Limits.pageBytes] && asked.map(\.1) == [40, 24])
        let (full, records, first) = (batch.hasNoRoomForData(), batch.recordCount, batch.records[0])
        #expect(full && records == 1 && first == PageRecord(first: 10, count: 64, form: .raw))
    }

    @Test("a run never goes back, and never crosses two blocks") func order() {
        var batch = Batch()
        _ = batch.addRun(10, count: 2, startsBlock: false) { _, _, _ in }
        let back = batch.addRun(11, count: 1, startsBlock: false) { _, _, _ in }
        let block = batch.addRun(12, count: 2, startsBlock: true) { _, _, _ in }
        #expect((back, block) == (0, 2))
        let records = batch.recordCount
        #expect(records == 2)
    }
}
