import ApusCodec
import ApusMemory
import ApusSystem

/// Mistakes made on purpose; the checker must see every one.
enum LineSabotage: CaseIterable {
    case none
    /// At the fence, gathered lines stay where they are.
    case fenceWithoutFlush
    /// After a lost connection nothing is sent again.
    case lostIsForgotten
    /// After a lost connection the receiver claims frames that never came.
    case moreIsConfirmed
    /// Two frames of one lane change places.
    case framesChangePlaces
    /// The receiver does not look at bases, and an old update comes again.
    case staleIsApplied
    /// Pages held back are forgotten at the switch.
    case heldIsForgotten
    /// The guest goes on at the destination before the fence has passed.
    case switchBeforeFence
}

struct LineViolation: Error {
    var text: String
    init(_ text: String) { self.text = text }
}

/// A source with a guest that dirties its memory, 1 to 4 lanes over links that delay and break, and a destination. The
/// lanes are the real ones without their sockets; this class plays guest, port, links and checker.
///
/// Checked after every step: the guest has one home; a page applied is exactly the version that was sent, never an older one
/// than before; a page that is neither dirty nor on its way is the same on both sides.
final class LineWorld {
    enum Home { case source, nowhere, destination }

    private var dice: SeededGenerator
    private let layout: Layout
    private let lanes: [LineWorldLane]
    private let replica: ReplicaMemory
    private let sabotage: LineSabotage
    private var memory: [UInt8]
    private var versions: [Int]
    private var dirty: Set<PageNumber> = []
    /// Rounds in a row in which a page was dirtied.
    private var heat: [Int]
    private var dirtiedThisRound: Set<PageNumber> = []
    private var cursors: [PageNumber]
    private var nowNs: UInt64 = 0
    private var home = Home.source
    private let hotPages: [PageNumber]
    private let holdsBack: Bool
    private let lossPerMille: Int
    /// What has happened at all, for the test that everything has.
    private(set) var marks: Set<String> = []
    private(set) var story: [String] = []

    init(seed: UInt64, sabotage: LineSabotage = .none) throws {
        var dice = SeededGenerator(seed: seed)
        for _ in 0..<8 { _ = dice.next() }
        let laneCount = 1 + Int(dice.next() % 4)
        let pageCount = 64 * laneCount * Int.random(in: 1...3, using: &dice) + Int(dice.next() % 64)
        layout = try Layout([("ram", UInt64(pageCount * 4096)), ("rom", 20 * 4096)])
        let options = LaneEncoder.Options(
            squeezes: dice.next() % 2 == 0, lineBytes: [128, 256, 512][Int(dice.next() % 3)],
            tableBytesMax: dice.next() % 3 == 0 ? 64 * 32 * 8 : .max)
        let memory = ReplicaMemory(layout)
        let linkBytesPerNs = [0.01, 0.1, 1, 20][Int(dice.next() % 4)]
        let layout = self.layout
        lanes = (0..<laneCount).map { lane in
            LineWorldLane(
                layout, LaneShare(lane: lane, lanes: laneCount), options, memory, linkBytesPerNs: linkBytesPerNs)
        }
        replica = memory
        self.sabotage = sabotage
        self.memory = [UInt8](repeating: 0, count: memory.bytes.count)
        versions = [Int](repeating: 0, count: Int(layout.pageCount))
        heat = [Int](repeating: 0, count: Int(layout.pageCount))
        cursors = [PageNumber](repeating: 0, count: laneCount)
        hotPages = (0..<20).map { _ in PageNumber(dice.next() % UInt64(pageCount)) }
        holdsBack = dice.next() % 2 == 0
        lossPerMille = [0, 5, 30][Int(dice.next() % 3)]
        self.dice = dice
        dirty = Set(0..<layout.pageCount)
        for page in 0..<layout.pageCount where below(3) > 0 { scribble(page, bytes: 4096) }
    }

    // MARK: A run

    func run(steps: Int) throws {
        for step in 0..<steps {
            try self.step()
            if step % 16 == 0 { try checkSettled() }
        }
        try switchOver()
    }

    private func step() throws {
        nowNs += UInt64(below(3_000_000))
        let lane = lanes[below(lanes.count)]
        switch below(100) {
        case 0..<30: write()
        case 30..<45: try fill(lane)
        case 45..<65: lane.work(nowNs: nowNs)
        case 65..<85: try lane.deliver(sabotage)
        case 85..<92: try lane.credit()
        case 92..<95: if nowNs >= lane.encoder.dueNs ?? .max { mark("aged", lane) { lane.flush() } }
        case 95: mark("patchable", lane) { lane.mayPatch() }
        case 96 where sabotage == .staleIsApplied: try lane.deliverAgain(sabotage)
        default: if below(1000) < lossPerMille * 10 { try lose(lane) }
        }
        if lane.encoder.filtered.samePages > 0 { marks.insert("same") }
        if lane.encoder.filtered.linePages > 0 { marks.insert("lines") }
        guard home == .source else { throw LineViolation("the guest left before the switch") }
    }

    /// The guest stops; all that is left travels, over links that still break; then its home flips.
    private func switchOver() throws {
        home = .nowhere
        if sabotage == .heldIsForgotten { dirty.subtract(dirty.filter { heat[Int($0)] >= Self.hotRounds }) }
        let isHasty = sabotage == .switchBeforeFence
        var rounds = 0
        while !isHasty && (!dirty.isEmpty || lanes.contains { !$0.isIdle }) {
            rounds += 1
            guard rounds < 20_000 else { throw LineViolation("the switch does not come to its end") }
            let lane = lanes[below(lanes.count)]
            try fill(lane, holdsBack: false)
            lane.work(nowNs: nowNs)
            // The fence comes behind the last page of the lane.
            if below(4) == 0 && sabotage != .fenceWithoutFlush { lane.flush() }
            for _ in 0..<below(4) { try lane.deliver(sabotage) }
            try lane.credit()
            if below(1000) < lossPerMille { try lose(lane) }
            if sabotage == .fenceWithoutFlush && dirty.isEmpty && lanes.allSatisfy({ $0.link.isEmpty }) { break }
        }
        home = .destination
        guard memory == replica.bytes else {
            let wrong = (0..<layout.pageCount).filter { !isSame($0) }
            throw LineViolation("\(wrong.count) pages differ after the switch, such as \(wrong[0])")
        }
    }

    // MARK: The guest

    private func write() {
        let page =
            below(3) == 0 ? PageNumber(below(Int(layout.pageCount))) : hotPages[below(hotPages.count)]
        switch below(12) {
        case 0:
            for index in Int(page) * 4096..<Int(page + 1) * 4096 { memory[index] = 0 }
            touch(page)
        case 1: scribble(page, bytes: 4096)
        // Dirty, and the same as before.
        case 2: touch(page)
        default: scribble(page, bytes: 1 + below(below(2) == 0 ? 8 : 1500))
        }
    }

    private func scribble(_ page: PageNumber, bytes: Int) {
        let first = Int(page) * 4096 + below(4097 - bytes)
        // Half of the contents compress.
        let mask: UInt64 = below(2) == 0 ? 0xff : 3
        for index in first..<first + bytes { memory[index] = UInt8(dice.next() & mask) }
        touch(page)
    }

    private func touch(_ page: PageNumber) {
        versions[Int(page)] += 1
        dirty.insert(page)
        dirtiedThisRound.insert(page)
    }

    // MARK: The port

    private static let hotRounds = 3

    /// A batch of dirty pages for one lane, ascending from where the last one ended; hot ones are held back.
    private func fill(_ lane: LineWorldLane, holdsBack: Bool? = nil) throws {
        guard lane.mayFill else { return }
        let index = lane.share.lane
        let hold = holdsBack ?? self.holdsBack
        var batch = Batch()
        var pages: [PageVersion] = []
        let memory = memory
        let wanted = 1 + below(64)
        for page in dirty.sorted() where page >= cursors[index] && lane.share.owns(page) {
            if hold && heat[Int(page)] >= Self.hotRounds {
                marks.insert("held")
                continue
            }
            guard pages.count < wanted else { break }
            let from = Int(page) * 4096
            let bytes = memory.rawBytes.extracting(from..<from + 4096)
            let startsBlock = layout.blocks.contains { $0.firstPage == page }
            let isZero = bytes.isAllZero && below(2) == 0
            guard batch.accepts(page, form: isZero ? .zero : .raw, startsBlock: startsBlock) else { break }
            if isZero {
                batch.addZero(page, startsBlock: startsBlock)
            } else {
                batch.add(page, bytes, startsBlock: startsBlock)
            }
            pages.append(PageVersion(page: page, number: versions[Int(page)], sum: Checksum.of(bytes)))
            dirty.remove(page)
            cursors[index] = page + 1
        }
        guard !pages.isEmpty else { return nextRound(index) }
        story.append("lane \(index) gets \(pages.map { "\($0.page)v\($0.number)" }.joined(separator: " "))")
        lane.fill(batch, pages)
    }

    private func nextRound(_ lane: Int) {
        cursors[lane] = 0
        guard lane == 0 else { return }
        for page in heat.indices { heat[page] = dirtiedThisRound.contains(PageNumber(page)) ? heat[page] + 1 : 0 }
        dirtiedThisRound.removeAll()
    }

    private func lose(_ lane: LineWorldLane) throws {
        let lost = try lane.reconnect(sabotage)
        story.append("lane \(lane.share.lane) loses \(lost)")
        marks.insert(lost.isEmpty ? "loss" : "loss of pages")
        dirty.formUnion(lost)
    }

    // MARK: The checker

    private func checkSettled() throws {
        for lane in lanes {
            let outstanding = lane.outstanding
            for page in 0..<layout.pageCount
            where lane.share.owns(page) && !dirty.contains(page) && !outstanding.contains(page) && !isSame(page) {
                throw LineViolation("page \(page) is neither dirty nor on its way, and differs")
            }
        }
    }

    private func isSame(_ page: PageNumber) -> Bool {
        pageSum(memory, page) == pageSum(replica.bytes, page)
    }

    private func mark(_ name: String, _ lane: LineWorldLane, _ body: () -> Void) {
        marks.insert(name)
        story.append("lane \(lane.share.lane): \(name)")
        body()
    }

    private func below(_ bound: Int) -> Int { Int(dice.next() % UInt64(max(1, bound))) }
}
