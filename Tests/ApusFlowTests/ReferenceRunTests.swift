import ApusCodec
import ApusContent
import ApusMemory
import ApusSystem
import ApusWire
import Foundation
import Testing

@testable import ApusFlow

/// Runs of pages that are referred to together: how a sender makes them, and what a receiver takes.
@Suite struct ReferenceRunTests {
    private static let key = ContentKey(secret: [UInt8](repeating: 7, count: 32), domain: "runs")
    private static let blocks = 300

    private static func content(_ number: Int) -> [UInt8] {
        let odd = number * 2 + 1
        return (0..<4096).map { UInt8(truncatingIfNeeded: odd &* ($0 / 8 + 31) &+ number >> 7) }
    }

    // MARK: Sender

    /// A page of the guest holds this block of the disk, or nothing that is on it.
    private typealias Guest = [(page: PageNumber, block: Int?)]

    private static func batch(_ guest: Guest, blockStarts: Set<PageNumber> = []) -> Batch {
        var batch = Batch()
        for (page, block) in guest {
            let bytes = content(block ?? 100_000 + Int(page))
            batch.add(page, bytes.rawBytes, startsBlock: blockStarts.contains(page))
        }
        return batch
    }

    private static func references() throws -> OutgoingReferences {
        let folder = NSTemporaryDirectory() + "runs-" + UUID().uuidString
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: folder) }
        try Data((0..<blocks).flatMap(content)).write(to: URL(fileURLWithPath: folder + "/disk"))
        let order = IndexOrder(image: folder + "/disk", sidecar: folder + "/index", key: key)
        let index = try #require(try BlockIndex.open(order)?.index)
        return OutgoingReferences(SourceReferences(key: key, images: [index], indexKey: key))
    }

    private static var readable: PageRanges {
        var ranges = PageRanges()
        ranges.append(0..<100_000)
        return ranges
    }

    /// The frame's entries as "page+pages@block"; their digests must be those of the blocks.
    private static func entries(_ references: borrowing OutgoingReferences, _ length: Int) throws -> [String] {
        let payload = references.frame.bytes.extracting(0..<length)
        return try (0..<ReferencePayload.head(payload).count).map { index in
            let entry = ReferencePayload.entry(payload, at: index)
            let bytes = (Int(entry.at)..<Int(entry.at) + entry.pages).flatMap(content)
            #expect(entry.digest == key.digest(of: bytes.rawBytes))
            return "\(entry.page)+\(entry.pages)@\(entry.at)"
        }
    }

    private static func sent(_ guest: Guest, blockStarts: Set<PageNumber> = []) throws -> [String] {
        var references = try references()
        let batch = batch(guest, blockStarts: blockStarts)
        let slots = references.search(batch, readable: readable)
        let found = guest.indices.reduce(0 as UInt64) { $0 | (guest[$1].block == nil ? 0 : 1 << UInt64($1)) }
        #expect(slots == found)
        guard let length = references.nextFrame(batch) else { return [] }
        let waiting = references.waitingPages()
        #expect(waiting == slots.nonzeroBitCount)
        let entries = try entries(references, length)
        let another = references.nextFrame(batch)
        #expect(another == nil)
        return entries
    }

    @Test func whatLiesOneAfterTheOtherGoesTogether() throws {
        #expect(
            try Self.sent((0..<40).map { (500 + PageNumber($0), 200 + $0) }) == [
                "500+16@200", "516+16@216", "532+8@232",
            ])
        // One page is elsewhere, one is nowhere, one is missing.
        let broken: Guest = [
            (0, 0), (1, 1), (2, 2), (3, 99), (4, 4), (5, nil), (6, 6), (7, 7), (9, 9), (10, 10), (11, 11),
        ]
        #expect(try Self.sent(broken) == ["0+3@0", "3+1@99", "4+1@4", "6+2@6", "9+3@9"])
        // The disk the other way round.
        #expect(try Self.sent((0..<4).map { (PageNumber($0), 9 - $0) }) == ["0+1@9", "1+1@8", "2+1@7", "3+1@6"])
    }

    @Test func aRunStaysInItsRAMBlock() throws {
        #expect(try Self.sent((0..<8).map { (PageNumber($0), $0) }, blockStarts: [5]) == ["0+5@0", "5+3@5"])
    }

    /// Any pages, anywhere: what is found is referred to once, in a frame that the receiver takes.
    @Test(arguments: 0..<20) func everyPageFoundIsInOneRun(seed: Int) throws {
        var guest: Guest = []
        var page = seed
        while guest.count < 64 {
            page += (guest.count * 7 + seed) % 11 == 0 ? 3 : 1
            guest.append((PageNumber(page), (guest.count + seed) % 9 == 0 ? nil : page % Self.blocks))
        }
        let pages = try Self.sent(guest).flatMap { entry in
            let numbers = entry.split { "+@".contains($0) }.compactMap { PageNumber($0) }
            return Array(numbers[0]..<numbers[0] + numbers[1])
        }
        #expect(pages == guest.filter { $0.block != nil }.map(\.page))
    }

    /// After much that is nowhere: of the first batch with some that is on the disk, all of it.
    @Test func nothingIsMissedWhereTheDiskBegins() throws {
        var references = try Self.references()
        var page: PageNumber = 0
        for _ in 0..<8 {
            let slots = references.search(Self.batch((0..<64).map { (page + $0, nil) }), readable: Self.readable)
            #expect(slots == 0)
            page += 64
        }
        // Eight of them are looked for now.
        let few = references.search(
            Self.batch((0..<64).map { (page + $0, $0 % 8 == 3 ? Int($0) : nil) }), readable: Self.readable)
        #expect(few == 0)
        let mixed: Guest = (0..<64).map { (page + 64 + $0, $0 < 20 ? nil : Int($0)) }
        let slots = references.search(Self.batch(mixed), readable: Self.readable)
        #expect(slots == .max << 20)
    }

    /// The middle one of three runs is wrong there: its pages travel, and no others.
    @Test func aRefusedRunTravelsWhole() throws {
        var references = try Self.references()
        let batch = Self.batch((0..<40).map { (500 + PageNumber($0), 200 + $0) })
        _ = references.search(batch, readable: Self.readable)
        _ = references.nextFrame(batch)
        let middle: UInt64 = 0xffff_0000
        let answer = ReferenceAnswer(number: 1, proved: 0xff_ffff_ffff & ~middle, refused: middle, readNs: 1)
        var pages: [PageNumber] = []
        try references.answered(answer, literalMs: 1) { pages.append($0) }
        #expect(pages == Array(516..<532))
        let (counts, waiting) = (references.counts, references.waitingPages())
        #expect(counts.diskPages == 24 && counts.refusedPages == 16 && waiting == 0)
    }

    /// A frame of three entries has 40 pages, and an answer has bits for no more.
    @Test func anAnswerMustBeToItsPages() throws {
        var references = try Self.references()
        let batch = Self.batch((0..<40).map { (500 + PageNumber($0), 200 + $0) })
        _ = references.search(batch, readable: Self.readable)
        _ = references.nextFrame(batch)
        #expect(throws: FrameError.badPayload(.referenceAnswer, "more pages than asked")) {
            try references.answered(
                ReferenceAnswer(number: 1, proved: 1 << 40, refused: 0, readNs: 1), literalMs: 1
            ) { _ in }
        }
    }

    // MARK: Receiver

    private static func payload(_ runs: [(page: PageNumber, pages: Int)], place: UInt8 = 1) -> [UInt8] {
        var buffer = PageBuffer(byteCount: ReferencePayload.bytesMax)
        ReferencePayload.store(.init(number: 1, count: runs.count, place: place), in: &buffer)
        for (index, run) in runs.enumerated() {
            let entry = ReferencePayload.Entry(
                page: run.page, at: .max, pages: run.pages, digest: Digest.of([UInt8]().rawBytes))
            ReferencePayload.store(entry, at: index, in: &buffer)
        }
        let length = ReferencePayload.headBytes + runs.count * ReferencePayload.entryBytes
        return buffer.bytes.extracting(0..<length).bytesCopied
    }

    /// What becomes of a frame on the first of some lanes: pages that are awaited.
    private static func accept(_ payload: [UInt8], lanes: Int) throws -> Int {
        let layout = try Layout([("ram", 4096 * 300), ("rom", 4096 * 100)])
        let share = LaneShare(lane: 0, lanes: lanes)
        let terms = DestinationReferences(key: key, images: [nil], snapshot: nil)
        var references = try IncomingReferences(terms, layout, share)
        defer { references.close() }
        var replica = ReplicaMap(share)
        var awaited = AwaitedPages(pageCount: layout.pageCount)
        let answer = try references.accept(payload.rawBytes, &replica, &awaited)
        #expect(answer == nil)
        return awaited.wantedCount
    }

    @Test func runsOfTheLaneAreTaken() throws {
        #expect(try Self.accept(Self.payload([(0, 16), (48, 16), (128, 1), (384, 16)]), lanes: 2) == 49)
        #expect(try Self.accept(Self.payload([(56, 16), (384, 16)]), lanes: 1) == 32)
    }

    @Test(arguments: [
        (page: PageNumber(400), pages: 1), (399, 2), (385, 16), (.max, 1), (.max, 16), (64, 1), (49, 16), (63, 2),
        (120, 16),
    ]) func runsOfOthersAreRefused(run: (page: PageNumber, pages: Int)) throws {
        let last = UInt64(run.page) + UInt64(run.pages) - 1
        #expect(throws: FrameError.badPayload(.reference, "pages \(run.page) to \(last) are not expected here")) {
            _ = try Self.accept(Self.payload([(0, 1), run]), lanes: 2)
        }
    }

    @Test func aPlaceThatNobodyAgreedOnIsRefused() {
        #expect(throws: FrameError.badPayload(.reference, "place 2 was not agreed on")) {
            _ = try Self.accept(Self.payload([(0, 16)], place: 2), lanes: 1)
        }
    }

    private struct Note: PageInstaller {
        var runs: [String] = []
        let patchable = PageRanges()

        mutating func installZero(first: PageNumber, count: Int) throws(PayloadError) {}
        mutating func install(first: PageNumber, _ bytes: RawSpan) throws(PayloadError) {
            let count = bytes.byteCount / 4096
            let numbers = (0..<count).map { bytes.littleEndian(at: $0 * 4096, as: UInt32.self) }
            runs.append("\(first)+\(count) \(numbers == Array(first..<first + PageNumber(count)))")
        }
        mutating func patch(
            _ page: PageNumber, mask: UInt32, lineBytes: Int, _ bytes: RawSpan
        ) throws(PayloadError) {}
    }

    /// Two runs that touch are installed at once, but never across two RAM blocks, and without what was overtaken.
    @Test func whatIsInstalledStaysInItsRAMBlock() throws {
        let layout = try Layout([("ram", 4096 * 300), ("rom", 4096 * 100)])
        let references = try IncomingReferences(nil, layout, LaneShare(lane: 0, lanes: 1))
        var awaited = AwaitedPages(pageCount: layout.pageCount)
        var parcel = ReferenceParcel()
        awaited.begin(1)
        for (slot, page) in (280..<312).enumerated() {
            awaited.add(PageNumber(page))
            parcel.pages.store(UInt64(page), at: slot * 4096)
        }
        awaited.supersede(first: 290, count: 2)
        let taken = awaited.take(1)
        let frame = try #require(taken)
        var note = Note()
        try references.install(parcel, frame, frame.wanted, into: &note)
        #expect(note.runs == ["280+10 true", "292+8 true", "300+12 true"])
    }
}
