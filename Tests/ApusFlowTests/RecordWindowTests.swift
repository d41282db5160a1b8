import Testing

@testable import ApusFlow
@testable import ApusMemory

@Suite struct RecordWindowTests {
    private func lengthMs(
        _ window: RecordWindow, leftMs: ((_ ms: Double) -> Double)? = nil, _ newPages: (_ ms: Double) -> Int
    ) -> Double {
        var window = window
        var ms = 0.0
        while !window.isOver {
            ms += 5
            window.found(newPages(ms), ms: ms, leftMs: leftMs?(ms))
        }
        return ms
    }

    @Test func itEndsWhenNothingNewComes() {
        let flat = lengthMs(RecordWindow(msMax: 5000, dataPages: 1 << 21)) { $0 < 300 ? 100 : 2 }
        #expect(flat > 300 && flat < 450)
        let endless = lengthMs(RecordWindow(msMax: 1000, dataPages: 1 << 21)) { _ in 100 }
        #expect(endless == 1000)
        let large = lengthMs(RecordWindow(msMax: 5000, dataPages: 4000)) { _ in 100 }
        #expect(large == 100)
        // A guest that does nothing.
        let idle = lengthMs(RecordWindow(msMax: 5000, dataPages: 4000)) { _ in 0 }
        #expect(idle < 200)
    }

    /// As long as pages travel, it is the touches of those that have not which count.
    @Test func itGoesOnWhileThatSavesFaults() {
        let window = RecordWindow(msMax: 5000, dataPages: 40_000)
        // Two pages a millisecond: a few when 16 ms are left, which is to be so for a while.
        let steady = lengthMs(window, leftMs: { max(0, 1400 - $0) }) { _ in 10 }
        #expect(steady > 1500 && steady <= 1600)
        // The more the slower the link is.
        #expect(lengthMs(window, leftMs: { 14_000 - $0 }) { _ in 10 } == 5000)
        // A burst, and then next to nothing.
        let idle = lengthMs(window, leftMs: { 1400 - $0 }) { $0 < 40 ? 500 : 0 }
        #expect(idle == 250)
        // One that had no processor for a moment is not idle.
        let starved = lengthMs(window, leftMs: { 5000 - $0 }) { $0 > 50 && $0 < 160 ? 0 : 40 }
        #expect(starved > 4500)
    }

    /// A scan finds new pages all the time, a hot set ever fewer.
    @Test func itIsKnownWhetherTheGuestComesBack() {
        func comesBack(_ newPages: (_ ms: Double) -> Int) -> Bool {
            var window = RecordWindow(msMax: 5000, dataPages: 40_000)
            for ms in stride(from: 5.0, through: 600, by: 5) { window.found(newPages(ms), ms: ms, leftMs: 5000) }
            return window.comesBack
        }
        #expect(!comesBack { $0 < 50 ? 300 : 40 + Int($0) % 3 })
        #expect(comesBack { $0 < 50 ? 300 : Int(40 * 100 / $0) })
        #expect(!comesBack { _ in 0 })
    }
}

@Suite struct EarlyPagesTests {
    private let all: [(first: PageNumber, count: Int)] = [(0, 100), (400, 1), (640, 70)]

    @Test func whatIsNotUsedGoesFirst() {
        var used = PageSet(pageCount: 1000)
        used.insert(first: 10, count: 5)
        var early = EarlyPages(all)
        func next() -> [Int]? {
            early.next(AccessRecord(), used: used, usedFirst: false) { _ in false }.map { [Int($0.first), $0.count] }
        }
        #expect(next() == [0, 10])
        #expect(next() == [15, 49])
        used.insert(first: 70, count: 100)
        #expect(next() == [64, 6])
        #expect(next() == [400, 1])
        #expect(next() == [640, 64])
        #expect(next() == [704, 6])
        #expect(next() == nil)
    }

    /// In the order of first use, but neither what was used a moment ago nor what is written, and nothing twice.
    @Test(arguments: [true, false]) func whatIsUsedFollows(usedFirst: Bool) {
        var record = AccessRecord()
        record.add([(60, 10), (80, 2)], ms: 5)
        record.add([(20, 1)], ms: 10)
        record.add([(30, 1)], ms: 90)
        record.add([], ms: 100)
        var used = PageSet(pageCount: 1000)
        for run in record.runs { used.insert(first: run.first, count: Int(run.count)) }
        var done = PageSet(pageCount: 1000)
        done.insert(first: 62, count: 1)
        done.insert(first: 81, count: 1)
        var early = EarlyPages([(600, 3)])
        func next() -> [Int]? {
            early.next(record, used: used, usedFirst: usedFirst) { done.contains($0) }.map {
                [Int($0.first), $0.count]
            }
        }
        if !usedFirst { #expect(next() == [600, 3]) }
        #expect(next() == [60, 2])
        #expect(next() == [63, 1])
        #expect(next() == [64, 6])
        #expect(next() == [80, 1])
        #expect(next() == [20, 1])
        if usedFirst { #expect(next() == [600, 3]) }
        #expect(next() == nil)
        record.add([], ms: 140)
        #expect(next() == [30, 1])
        #expect(next() == nil)
    }
}
