import ApusMemory
import ApusSystem
import Testing

/// QEMU's stream in miniature: pages come in passes, and what travels is applied at once.
private struct World: ~Copyable {
    var held: HeldPages
    var here: [UInt64]
    var there: [UInt64]
    var travelled = 0
    /// Pages that left in the last release, in their order.
    var left: [PageNumber] = []
    private var page = PageBuffer(byteCount: Limits.pageBytes)
    private let pausePages: Double

    init(pages: Int, pausePages: Double = 1000, capacity: Int = Limits.heldPages) {
        held = HeldPages(pageCount: PageNumber(pages), capacity: capacity)
        here = [UInt64](repeating: 0, count: pages)
        there = here
        self.pausePages = pausePages
    }

    /// The guest writes the page, and QEMU sends it; nil: it is all zeros now.
    mutating func send(_ number: PageNumber, _ version: UInt64?) {
        if held.beginsPass(number) {
            held.endPass(pausePages: pausePages)
            release()
        }
        here[Int(number)] = version ?? 0
        if let version {
            page.store(version, at: 0)
            page.store(~version, at: Limits.pageBytes - 8)
            if Self.take(&held, number, page) { return }
        } else {
            held.cancel(number)
        }
        there[Int(number)] = version ?? 0
        travelled += 1
    }

    private static func take(_ held: inout HeldPages, _ number: PageNumber, _ page: borrowing PageBuffer) -> Bool {
        held.take(number, page.bytes)
    }

    mutating func release() {
        left = []
        let (first, count) = (travelled, there.count)
        var (there, left) = (self.there, self.left)
        held.release { number, bytes in
            precondition(Int(number) < count)
            let version = bytes.littleEndian(at: 0, as: UInt64.self)
            precondition(bytes.littleEndian(at: Limits.pageBytes - 8, as: UInt64.self) == ~version, "torn copy")
            there[Int(number)] = version
            left.append(number)
        }
        self.there = there
        self.left = left
        travelled = first + left.count
    }

    /// A pass in which these pages come; the next one begins at its end.
    mutating func pass(_ pages: some Sequence<PageNumber>, _ version: UInt64) {
        for page in pages { send(page, version) }
    }
}

@Suite("Held pages") struct HeldPagesTests {
    @Test("a page that comes in two passes is held, replaced, and leaves when it cools") func hotPage() {
        var world = World(pages: 300)
        world.pass(0..<300, 1)
        let afterFirst = world.travelled
        // Everything comes in the first pass: no sign of heat.
        world.pass([5, 6], 2)
        let afterSecond = (world.travelled, world.held.count)
        world.pass([5, 200], 3)
        let afterThird = (world.travelled, world.held.count, world.there[5])
        world.pass([5, 201], 4)
        let afterFourth = (world.travelled, world.held.count, world.held.absorbedPages)
        world.pass([1, 7], 5)
        // Still held: it may come until the pass ends.
        let afterFifth = world.held.count
        world.pass([1], 6)
        let (left, fresh, count) = (world.left, world.there[5], world.held.count)
        #expect(afterFirst == 300)
        #expect(afterSecond == (302, 0))
        #expect(afterThird == (303, 1, 2))
        #expect(afterFourth == (304, 1, 1))
        #expect(afterFifth == 1)
        // Page 1 has come in two passes by now.
        #expect(left == [5] && fresh == 4 && count == 1)
    }

    @Test("zeros drop the copy") func zeros() {
        var world = World(pages: 64)
        for version in 1...3 as ClosedRange<UInt64> { world.pass([3, 4], version) }
        world.pass([3], 4)
        world.send(4, nil)
        world.held.close()
        world.release()
        let (left, there) = (world.left, world.there)
        #expect(left == [3])
        #expect(there[3] == 4 && there[4] == 0)
    }

    @Test("when the guest is stopped, what comes travels, and the rest follows") func close() {
        var world = World(pages: 64)
        for version in 1...3 as ClosedRange<UInt64> { world.pass([3, 4, 9], version) }
        let held = world.held.count
        world.held.close()
        world.send(4, 4)
        let after = (world.there[4], world.held.count)
        world.release()
        let (left, there, count) = (world.left, world.there, world.held.count)
        #expect(held == 3 && after == (4, 2))
        #expect(left == [3, 9] && count == 0)
        #expect(there[3] == 3 && there[9] == 3 && there[4] == 4)
    }

    @Test("room grows where pages come again, and almost vanishes where they do not") func room() {
        var hot = World(pages: 4096)
        for version in 1...12 as ClosedRange<UInt64> { hot.pass(0..<400, version) }
        // Never more than a quarter of what the pause carries.
        let (hotCount, hotCold) = (hot.held.count, hot.held.coldCount)
        #expect(hotCount > 180 && hotCount <= 250)
        #expect(hotCold < 20)
        var cold = World(pages: 4096, pausePages: 100_000)
        var most = 0
        // Every page comes in two passes, then rests: the worst there is.
        for round in 0..<40 as Range<PageNumber> {
            cold.pass(round * 64..<round * 64 + 128, UInt64(round) + 1)
            if round > 12 { most = max(most, cold.held.count) }
        }
        #expect(most <= HoldRoom.probePages)
        var narrow = World(pages: 4096, pausePages: 20)
        for version in 1...12 as ClosedRange<UInt64> { narrow.pass(0..<400, version) }
        let narrowCount = narrow.held.count
        #expect(narrowCount <= 5)
    }

    /// Whatever comes: what leaves is the newest content, in order; nothing is lost, nothing old arrives late.
    @Test("the destination ends with the newest of every page", arguments: 0..<60 as Range<UInt64>) func nothingIsLost(
        seed: UInt64
    ) {
        var random = Seeded(seed)
        let count = 500
        var world = World(
            pages: count, pausePages: Double.random(in: 0...3000, using: &random),
            capacity: Int.random(in: 1...200, using: &random))
        var version: UInt64 = 0
        var most = 0
        var isOrdered = true
        for pass in 0..<40 {
            let share = Double.random(in: 0...1, using: &random)
            for page in 0..<PageNumber(count) {
                let hot = page % 7 == 0
                guard pass == 0 || Double.random(in: 0...1, using: &random) < (hot ? 0.95 : share * 0.3) else {
                    continue
                }
                version += 1
                world.send(page, Int.random(in: 0..<20, using: &random) == 0 ? nil : version)
                isOrdered = isOrdered && world.left == world.left.sorted()
            }
            most = max(most, world.held.count)
        }
        world.held.close()
        for page in 0..<PageNumber(count) where Int.random(in: 0..<3, using: &random) == 0 {
            version += 1
            world.send(page, version)
        }
        world.release()
        let (here, there, left, absorbed) = (world.here, world.there, world.held.count, world.held.absorbedPages)
        #expect(here == there)
        #expect(isOrdered && left == 0)
        #expect(most == 0 || absorbed > 0)
    }
}
