import ApusMemory
import ApusSystem
import Testing

@Suite struct LaneShareTests {
    @Test(arguments: 1...16) func everyPageHasItsOwnPlace(lanes: Int) {
        var seen = [Set<Int>](repeating: [], count: lanes)
        for page in 0..<PageNumber(64 * 50) {
            let owners = (0..<lanes).filter { LaneShare(lane: $0, lanes: lanes).owns(page) }
            #expect(owners == [laneIndex(of: page, lanes: lanes)])
            let index = LaneShare(lane: owners[0], lanes: lanes).index(of: page)
            #expect(seen[owners[0]].insert(index).inserted)
        }
        // Without gaps.
        for indexes in seen { #expect((indexes.max() ?? -1) < (50 + lanes - 1) / lanes * 64) }
    }
}

@Suite struct ReplicaMapTests {
    @Test func countsUpdatesSinceTheLastWholePage() {
        var map = ReplicaMap(LaneShare(lane: 1, lanes: 2))
        func bases() -> [UInt8] { [64, 65, 192, 100_000 * 128 + 64].map { map.base(of: $0) } }
        #expect(bases() == [0, 0, 0, 0])
        map.setWhole(first: 64, count: 2)
        map.setUpdated(65)
        map.setUpdated(65)
        map.setWhole(first: 192, count: 1, isZero: true)
        #expect(bases() == [1, 3, 1, 0])
        let zeros = [map.isZero(64), map.isZero(192)]
        #expect(zeros == [false, true])
        map.setUpdated(192)
        let isStillZero = map.isZero(192)
        #expect(!isStillZero)
        map.forget(first: 64, count: 64)
        #expect(bases() == [0, 0, 2, 0])
    }
}

@Suite struct FlightLedgerTests {
    @Test func whatIsNotConfirmedComesBack() {
        var ledger = FlightLedger()
        var sent: [[(PageNumber, Int)]] = []
        for frame in 0..<PageNumber(100) {
            ledger.begin()
            let runs = (0..<frame % 5).map { (frame * 1000 + $0, Int($0) + 1) }
            for (first, count) in runs { ledger.add(first: first, count: count) }
            sent.append(runs)
        }
        let answers = [ledger.confirm(upTo: 60), ledger.confirm(upTo: 59), ledger.confirm(upTo: 101)]
        #expect(answers == [true, false, false])
        var left: [PageNumber: Int] = [:]
        while let run = ledger.takeUnconfirmed() { left[run.first] = run.count }
        #expect(left == Dictionary(uniqueKeysWithValues: sent[60...].joined()))
        let numbers = [ledger.sent, ledger.confirmed]
        #expect(numbers == [60, 60])
    }

    /// Rings go round many times.
    @Test func itNeverHoldsMoreThanItsRoom() {
        var ledger = FlightLedger()
        var frames: UInt64 = 0
        for frame in 0..<PageNumber(5000) {
            while !ledger.hasRoom {
                let isConfirmed = ledger.confirm(upTo: ledger.confirmed + 7)
                #expect(isConfirmed)
            }
            ledger.begin()
            frames += 1
            for run in 0..<PageNumber(Limits.updatePages) { ledger.add(first: frame &+ run, count: 1) }
        }
        let inFlight = frames - ledger.confirmed
        #expect(inFlight <= UInt64(Limits.runsInFlight / Limits.updatePages))
        let isConfirmed = ledger.confirm(upTo: frames - 1)
        #expect(isConfirmed)
        let first = ledger.takeUnconfirmed()?.first
        #expect(first == 4999)
    }
}

@Suite struct PageRangesTests {
    @Test func neighboursJoinAndDisorderIsRefused() {
        var ranges = PageRanges()
        let answers = [0..<10, 10..<20, 30..<40, 39..<50, 60..<60, 5..<6].map {
            ranges.append(PageNumber($0.lowerBound)..<PageNumber($0.upperBound))
        }
        #expect(answers == [true, true, true, false, false, false])
        #expect(ranges.ranges == [0..<20, 30..<40])
        #expect(
            [0, 19, 20, 29, 30, 39, 40].map { ranges.contains($0) } == [true, true, false, false, true, true, false])
    }
}

@Suite struct BatchRemovalTests {
    /// Any pages can be taken out of any batch that has room for the records; the others keep number and content.
    @Test(arguments: [1, 2, 3, 4, 5, 6] as [UInt64]) func theOthersStay(seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        for _ in 0..<50 {
            var batch = Batch()
            var data: [(PageNumber, UInt8)] = []
            var page: PageNumber = 0
            for _ in 0..<random.next() % 80 {
                page += 1 + (random.next() % 3 == 0 ? PageNumber(random.next() % 9) : 0)
                let isZero = random.next() % 4 == 0
                guard batch.accepts(page, form: isZero ? .zero : .raw, startsBlock: false) else { break }
                if isZero {
                    batch.addZero(page, startsBlock: false)
                } else {
                    let mark = UInt8(truncatingIfNeeded: random.next())
                    batch.add(page, [UInt8](repeating: mark, count: 4096).rawBytes, startsBlock: false)
                    data.append((page, mark))
                }
            }
            let drop = random.next() & random.next()
            batch.remove(slots: drop)
            var kept: [(PageNumber, UInt8)] = []
            for index in 0..<batch.recordCount where batch.records[index].form == .raw {
                let record = batch.records[index]
                #expect(record.count > 0)
                for offset in 0..<PageNumber(record.count) {
                    kept.append((record.first + offset, batch.data.bytes.byte(at: kept.count * 4096 + 4095)))
                }
            }
            let expected = data.enumerated().filter { drop & (1 << UInt64($0.offset)) == 0 }.map(\.element)
            #expect(kept.map(\.0) == expected.map(\.0))
            #expect(kept.map(\.1) == expected.map(\.1))
            let dataPages = batch.dataPages
            #expect(dataPages == expected.count)
        }
    }
}
