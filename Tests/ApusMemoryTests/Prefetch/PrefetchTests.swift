import Testing

@testable import ApusMemory

/// How many touches find their page missing, by what decides the order of pushes.
@Suite struct PrefetchTests {
    private func faults(_ simulation: PushSimulation) -> [Prefetch: Int] {
        Dictionary(uniqueKeysWithValues: Prefetch.allCases.map { ($0, simulation.faults($0)) })
    }

    private func expectFifth(_ simulation: PushSimulation, _ what: String) {
        let faults = faults(simulation)
        let (plain, trend) = (faults[.sweep] ?? 0, faults[.trend] ?? 0)
        #expect(plain > 100 && Double(trend) <= 0.21 * Double(plain), "\(what): \(faults)")
    }

    @Test func aScanIsForeseen() {
        expectFifth(Walk.simulation(pages: 32_768) { 20_000 + $0 }, "up")
        expectFifth(Walk.simulation(pages: 32_768) { 30_000 - $0 }, "down")
    }

    @Test func stridesAreForeseen() {
        expectFifth(Walk.simulation(pages: 131_072) { 20_000 + $0 * 8 }, "8 pages")
        expectFifth(Walk.simulation(pages: 262_144) { 250_000 - $0 * 17 }, "17 pages down")
    }

    @Test func walksAtTheSameTimeAreToldApart() {
        expectFifth(
            Walk.simulation(pages: 131_072) { visit in
                switch visit % 3 {
                case 0: 10_000 + visit / 3
                case 1: 90_000 - visit / 3
                default: 50_000 + visit / 3 * 4
                }
            }, "three walks")
    }

    /// A walk over every 8th page, close to another through all: nobody who goes through all would leave seven out. Taken for
    /// one, it would be faster than the link.
    @Test func aWalkIsNotTakenForADenserOne() {
        let touches = Walk.touches(ms: 1000) { visit in
            let (block, at) = (visit / 100, visit % 100)
            return at < 60 ? 40_000 + block * 60 + at : 40_100 + (block * 40 + at - 60) * 8
        }
        var simulation = PushSimulation(pageCount: 131_072, after: touches)
        simulation.pagesPerMs = 16
        let (plain, trend) = (simulation.faults(.sweep), simulation.faults(.trend))
        #expect(Double(trend) <= 0.05 * Double(plain), "\(trend) of \(plain)")
    }

    /// A walk whose pages come in time is not seen, while touches here and there are: it is followed all the same.
    @Test func aWalkThatIsServedIsNotForgotten() {
        var random = Seeded(5)
        var predictor = AccessPredictor(pageCount: 1 << 20)
        var missing = PageSet(pageCount: 1 << 20)
        missing.insert(first: 0, count: 1 << 20)
        for step in 0..<200 {
            missing.remove(first: PageNumber(5000 + step), count: 1)
            predictor.touched(PageNumber(5000 + step), ms: Double(step), missing: missing)
        }
        for _ in 0..<200 {
            predictor.touched(PageNumber(100_000 + random.next() % 900_000), ms: 201, missing: missing)
        }
        #expect(predictor.next(ms: 201, limit: 4)?.first == 5200)
    }

    /// What walks have used comes after what was used here and there: a walk that comes back is seen coming.
    @Test func theRecordOfWalksComesLast() {
        var record = AccessRecord()
        for look in 0..<40 {
            let walk = (first: PageNumber(1000 + look * 20), count: 20)
            record.add([walk, (PageNumber(20_000 + look * 301), 1)], ms: Float(look + 1) * 5)
        }
        var due = PageSet(pageCount: 65_536)
        for run in record.runs { due.insert(first: run.first, count: Int(run.count)) }
        // Long after the record: no walk is under way any more.
        record.add([], ms: 1000)
        var order = PushOrder(due, .trend, record: record)
        let first = (0..<40).compactMap { _ in order.next(ms: 0, limit: 1)?.first }
        // It took the walk a look to be known as one.
        #expect(first.count == 40 && first.dropFirst(20).allSatisfy { $0 >= 20_000 }, "\(first)")
    }

    /// An order that is given is kept, whatever is touched.
    @Test func aGivenOrderIsKept() {
        var due = PageSet(pageCount: 4096)
        due.insert(first: 0, count: 4096)
        var order = PushOrder(due, .given, record: AccessRecord(given: [(700, 3), (20, 2), (701, 1), (90, 1)]))
        order.touched(90, ms: 0)
        order.touched(300, ms: 0)
        let runs = (0..<3).compactMap { _ in order.next(ms: 1) }
        #expect(runs.prefix(2).map(\.first) == [700, 20] && runs.prefix(2).map(\.count) == [3, 2])
        #expect(runs.map(\.reason) == [.recorded, .recorded, .rest])
    }

    /// A few pages are touched most: they are those that were touched before.
    @Test func whatWasUsedIsUsedAgain() {
        var random = Seeded(3)
        let hot = (0..<500).map { _ in Int(random.next() % 60_000) }
        expectFifth(Walk.simulation(pages: 65_536) { _ in hot[Int(random.next() % 500)] }, "hot set")
    }

    /// The walk that was recorded ends, and another begins elsewhere.
    @Test func anotherPhaseIsFollowed() {
        let simulation = Walk.simulation(pages: 65_536) { visit in
            visit < 3000 ? 30_000 + visit : visit < 7000 ? 60_000 - visit : 2 * visit
        }
        expectFifth(simulation, "phases")
    }

    @Test func chanceLosesNothing() {
        var (plain, trend) = (0, 0)
        for seed in 0..<6 {
            var random = Seeded(UInt64(100 + seed))
            let simulation = Walk.simulation(pages: 32_768) { _ in Int(random.next() % 32_768) }
            plain += simulation.faults(.sweep)
            trend += simulation.faults(.trend)
        }
        #expect(plain > 6000 && Double(trend) <= 1.02 * Double(plain), "\(trend) of \(plain)")
    }

    @Test func everyPageGoesOnceWhateverIsGuessed() {
        for prefetch in Prefetch.allCases {
            var random = Seeded(11)
            let count: PageNumber = 9000
            let before = Walk.simulation(pages: Int(count)) { $0 % 2 == 0 ? $0 : Int(random.next() % 9000) }.before
            var due = PageSet(pageCount: count)
            due.insert(first: 0, count: Int(count))
            due.remove(first: 4000, count: 100)
            var order = PushOrder(due, prefetch, record: before)
            var left = Set(0..<Int(count)).subtracting(4000..<4100)
            var ms = 0.0
            while let run = order.next(ms: ms, limit: 1 + Int(random.next() % 64)) {
                #expect(run.first >> 6 == (run.first + PageNumber(run.count) - 1) >> 6)
                for page in Int(run.first)..<Int(run.first) + run.count { #expect(left.remove(page) != nil) }
                ms += 0.3
                guard random.next() % 8 == 0 else { continue }
                let page = PageNumber(random.next() % 9100)
                let wasDue = order.touched(page, ms: ms)
                #expect(wasDue == (left.remove(Int(page)) != nil))
            }
            #expect(left == [], "\(prefetch)")
        }
    }

    @Test func theWindowAroundATouchComesFirst() {
        var due = PageSet(pageCount: 5000)
        due.insert(first: 0, count: 5000)
        var order = PushOrder(due, .near)
        #expect(order.next(ms: 0) == .init(first: 0, count: 64, reason: .rest))
        order.touched(3003, ms: 1)
        #expect(order.next(ms: 1) == .init(first: 2992, count: 11, reason: .near))
        #expect(order.next(ms: 1) == .init(first: 3004, count: 4, reason: .near))
        // Then what lies behind it; of two touches the newer.
        #expect(order.next(ms: 1) == .init(first: 3008, count: 64, reason: .near))
        order.touched(4990, ms: 2)
        #expect(order.nextAround() == .init(first: 4976, count: 14, reason: .near))
        #expect(order.nextAround() == .init(first: 4991, count: 1, reason: .near))
        #expect(order.nextAround() == nil)
        #expect(order.next(ms: 2) == .init(first: 4992, count: 8, reason: .near))
        #expect(order.next(ms: 2) == .init(first: 3072, count: 64, reason: .near))
    }

    @Test func aProgramThatGoesOnIsOnePoint() {
        var due = PageSet(pageCount: 5000)
        due.insert(first: 0, count: 5000)
        var order = PushOrder(due, .near)
        order.touched(100, ms: 0)
        while order.nextAround() != nil {}
        var next: PageNumber = 112
        // It runs into the pages that were about to come, many more times than points are remembered.
        for _ in 0..<20 {
            order.touched(next, ms: 0)
            while order.nextAround() != nil {}
            guard let run = order.next(ms: 0) else { break }
            #expect(run.first >= next && run.first < next + 17)
            next = run.first + PageNumber(run.count)
        }
    }
}
