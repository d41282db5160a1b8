import ApusSystem
import Testing

@testable import ApusWire

/// Streams captured from real QEMUs; the file name says version, machine type, mode and channel (Fixtures/capture.py).
struct QemuFixtureTests {
    static let streams = Fixture.names("main", "recovery", "preempt")

    /// How many seeds a test tries: a debug build is thirty times slower.
    static func seeds(_ count: UInt64) -> ClosedRange<UInt64> {
        #if DEBUG
            1...max(1, count / 8)
        #else
            1...count
        #endif
    }

    /// The reader with which the stream of this name begins.
    static func reader(for name: String) throws -> QemuStreamReader {
        let stem = name.split(separator: ".").dropLast().joined(separator: ".")
        if name.hasSuffix(".recovery") { return QemuStreamReader(recovering: try main(stem)) }
        if name.hasSuffix(".preempt") { return QemuStreamReader(preemptChannelOf: try main(stem)) }
        return QemuStreamReader()
    }

    private static func main(_ stem: String) throws -> QemuStreamReader {
        try Feeder.read(try Fixture.load(stem + ".main")).reader
    }

    static func read(_ name: String) throws -> Feeder {
        try Feeder.read(try Fixture.load(name), with: try reader(for: name))
    }

    @Test func allModesAreHere() {
        #expect(Self.streams.count == 29)
    }

    @Test("Read to the end and written again identically", arguments: streams)
    func rebuilt(name: String) throws {
        let bytes = try Fixture.load(name)
        let before = try Self.reader(for: name)
        let feeder = try Feeder.read(bytes, with: before)
        #expect(feeder.left == 0)
        #expect(feeder.reader.position == UInt64(bytes.count))
        // 10.0 closes the preempt channel without EOS, and the cut main stream of the recovery ends with RUN.
        let endsSilently = name.hasPrefix("10.0") && name.hasSuffix(".preempt") || name.hasSuffix("recovery.main")
        #expect((feeder.seen.last?.element == .end || feeder.seen.last?.element == .endOfRecords) != endsSilently)

        var rebuilder = Rebuilder(
            QemuStreamWriter(table: before.table), followsNames: name.hasPrefix("7.2") && name.contains("preempt"))
        for seen in feeder.seen { rebuilder.rebuild(seen, reader: feeder.reader) }
        let rebuilt = rebuilder.buffer.array
        #expect(rebuilt.count == bytes.count)
        #expect(
            rebuilt == bytes,
            "first difference at \(zip(rebuilt, bytes).enumerated().first { $1.0 != $1.1 }?.offset ?? -1)")
    }

    @Test("Any split gives the same elements", arguments: streams)
    func split(name: String) throws {
        let bytes = try Fixture.load(name)
        let whole = try Self.read(name).seen
        for seed in Self.seeds(8) {
            var random = Seed(seed)
            var feeder = Feeder(try Self.reader(for: name))
            var at = 0
            while at < bytes.count {
                let scale = 1 << random.below(16)
                let end = min(bytes.count, at + 1 + random.below(scale))
                try feeder.feed(bytes[at..<end])
                at = end
            }
            #expect(feeder.seen == whole, "seed \(seed)")
        }
    }

    @Test("Byte by byte: the same elements, no end before the last byte, every cut is noticed", arguments: streams)
    func truncated(name: String) throws {
        let bytes = try Fixture.load(name)
        let whole = try Self.read(name).seen
        var feeder = Feeder(try Self.reader(for: name))
        var missed: [Int] = []
        for (index, byte) in bytes.enumerated() {
            try feeder.feed(CollectionOfOne(byte))
            if index == bytes.count - 1 { break }
            if feeder.seen.last?.element == .end { missed.append(index) }
            let mayEnd = feeder.seen.last?.element == .endOfFile || name.hasSuffix(".preempt")
            // `finish` would throw millions of times, which the testing library makes slow.
            if feeder.reader.mayEndHere && feeder.left == 0 && !mayEnd { missed.append(index) }
        }
        #expect(missed.isEmpty)
        #expect(feeder.seen == whole)
    }

    @Test("Changed bytes give errors or other elements, never a trap", arguments: streams)
    func mutated(name: String) throws {
        let original = try Fixture.load(name)
        let before = try Self.reader(for: name)
        let whole = try Feeder.read(original, with: before).seen
        var starts: [Int] = []
        var position = 0
        for seen in whole {
            starts.append(position)
            position += seen.bytes.count
        }
        var refused = 0
        for seed in Self.seeds(40) {
            var random = Seed(seed)
            var bytes = original
            for _ in 0...random.below(4) {
                // Heads of elements are where a change hurts; pages would only hide it.
                let at = min(bytes.count - 1, starts[random.below(starts.count)] + random.below(12))
                switch random.below(3) {
                case 0: bytes[at] = UInt8(random.below(256))
                case 1: bytes[at] ^= 1 << UInt8(random.below(8))
                default: bytes.replaceSubrange(at..<min(bytes.count, at + random.below(9)), with: [])
                }
            }
            var feeder = Feeder(before)
            do {
                var at = 0
                while at < bytes.count {
                    let end = min(bytes.count, at + 1 + random.below(1 << 15))
                    try feeder.feed(bytes[at..<end])
                    at = end
                }
                try feeder.reader.finish(left: feeder.left)
            } catch is StreamError {
                refused += 1
            }
        }
        #expect(refused > 0)
    }

    // MARK: What is in them

    private func elements(_ name: String) throws -> [StreamElement] { try Self.read(name).seen.map(\.element) }

    @Test func plainHoldsTheGuestsPages() throws {
        for name in ["7.2-pc-i440fx-7.2-plain.main", "10.0-pc-q35-10.0-plain.main"] {
            let feeder = try Self.read(name)
            #expect(feeder.reader.machine == (name.hasPrefix("7.2") ? "pc-i440fx-7.2" : "pc-q35-10.0"))
            #expect(feeder.reader.blocks.first == RamBlock(name: "pc.ram", usedLength: 2056 << 10))
            #expect(feeder.reader.blocks.count == 6)
            #expect(try GuestMemory(feeder).checkedPages == 16)
        }
    }

    @Test("XBZRLE deltas lead to the guest's own content", arguments: names(containing: "xbzrle"))
    func xbzrle(name: String) throws {
        let feeder = try Self.read(name)
        var deltas = 0
        for seen in feeder.seen { if case .xbzrle = seen.element { deltas += 1 } }
        #expect(deltas > 0)
        #expect(try GuestMemory(feeder).checkedPages == 16)
    }

    static func names(containing mode: String) -> [String] { streams.filter { $0.contains(mode) } }

    @Test func compressedPagesAreZlibStreams() throws {
        var count = 0
        for seen in try Self.read("7.2-pc-i440fx-7.2-compress.main").seen {
            guard case .compressed(_, _, let length) = seen.element else { continue }
            count += 1
            #expect(seen.bytes[seen.bytes.count - length] == 0x78)
        }
        #expect(count == 32)
    }

    @Test("Shared blocks are listed with addresses, without pages", arguments: names(containing: "ignore-shared"))
    func ignoreShared(name: String) throws {
        let feeder = try Self.read(name)
        #expect(feeder.reader.ignoresShared)
        #expect(feeder.reader.blocks.allSatisfy { $0.guestAddress != nil })
        #expect(feeder.reader.blocks.first { $0.name == "pc.bios" }?.guestAddress == 0xffff_0000)
        for seen in feeder.seen {
            if case .page(let block, _) = seen.element { #expect(block != 0) }
            if case .zero(let block, _) = seen.element { #expect(block != 0) }
        }
    }

    @Test("Dirty bitmaps are cut into chunks", arguments: names(containing: "bitmaps"))
    func bitmaps(name: String) throws {
        let elements = try elements(name)
        #expect(elements.contains(.command(.postcopyAdviseBitmaps)))
        let flags = elements.compactMap { if case .bitmapChunk(let flags) = $0 { flags } else { nil } }
        #expect(flags.first == 0x1c)
        #expect(flags.filter { $0 == 0x01 }.count == 2)
        #expect(flags.contains { $0 & 0x60 == 0x40 } && flags.contains { $0 & 0x60 == 0x20 })
    }

    @Test func multifdKeepsPagesOffTheMainConnection() throws {
        for name in Self.names(containing: "multifd") {
            let elements = try elements(name)
            #expect(!elements.contains { if case .page = $0 { true } else { false } })
            #expect(elements.contains(.multifdFlush) == name.contains("q35-10.0"))
        }
        for name in Fixture.names("multifd0", "multifd1") {
            let kind = ConnectionKind.told(by: try Fixture.load(name))
            guard case .multifd = kind else { Issue.record("\(name) is \(String(describing: kind))"); continue }
        }
    }

    @Test(
        "Post-copy: what is in the package is read",
        arguments: names(containing: "postcopy") + names(containing: "preempt.main"))
    func postcopy(name: String) throws {
        let elements = try elements(name)
        let begin = try #require(elements.firstIndex { if case .command(.packaged) = $0 { true } else { false } })
        let end = try #require(elements.firstIndex(of: .packageEnd))
        guard case .sectionFull(let head) = elements[begin + 2] else { Issue.record("no device section"); return }
        #expect(
            elements[begin + 1...end] == [
                .command(.postcopyListen), .sectionFull(head), .deviceBytes, .command(.ping(3)), .command(.postcopyRun),
                .packageEnd,
            ])
        #expect(elements[end + 1] == .command(.ping(4)))
        #expect(elements.contains(.command(.postcopyDiscard(block: 0, ranges: 1))))
        #expect(elements.suffix(3) == [.footer(id: elements.ramSection), .endOfFile, .end])
    }

    @Test func recoveryAsksForBitmapsAndGoesOn() throws {
        let name = "7.2-pc-i440fx-7.2-recovery.recovery"
        let elements = try elements(name)
        #expect(elements.prefix(6) == (0..<6).map { .command(.receiveBitmap(block: $0)) }[...])
        #expect(elements[6] == .command(.postcopyResume))
        #expect(elements.last == .end)
        #expect(ConnectionKind.told(by: try Fixture.load(name)) == .recovery)
        #expect(throws: StreamError.notMigrationStream(magic: 0x08_000a00)) {
            try Feeder.read(try Fixture.load(name))
        }
    }

    @Test("The kind of connection is told from its first bytes", arguments: streams)
    func connectionKind(name: String) throws {
        let bytes = try Fixture.load(name)
        let expected: ConnectionKind = name.hasSuffix("main") ? .main : name.hasSuffix("preempt") ? .preempt : .recovery
        #expect(ConnectionKind.told(by: bytes) == expected)
        #expect(ConnectionKind.told(by: Array(bytes.prefix(3))) == nil)
    }

    @Test func uuidIsReported() throws {
        let seen = try Self.read("10.0-pc-q35-10.0-uuid.main").seen
        #expect(seen[1].element == .configuration(.uuid))
        #expect(seen[1].bytes.suffix(2) == [0xee, 0xff])
    }
}

extension [StreamElement] {
    /// The id of the RAM section.
    fileprivate var ramSection: UInt32 {
        for element in self { if case .sectionStart(let head) = element, head.kind == .ram { return head.id } }
        return 0
    }
}

/// What the guest of the captures has in its RAM, built from a stream, with its own rule checked: page p of the sixteen
/// from 0x10000 holds a counter in byte 0 and its segment number (p / 16, little-endian) in bytes 8 and 9.
struct GuestMemory {
    var checkedPages = 0

    init(_ feeder: Feeder) throws {
        var pages: [UInt64: [UInt8]] = [:]
        for seen in feeder.seen {
            switch seen.element {
            case .page(0, let offset): pages[offset] = Array(seen.bytes.suffix(4096))
            case .zero(0, let offset): pages[offset] = [UInt8](repeating: 0, count: 4096)
            case .xbzrle(0, let offset, let length):
                var page = try #require(pages[offset])
                var span = page.mutableSpan
                var target = span.rawBytes
                try Xbzrle.apply(seen.bytes.span.rawBytes.extracting(last: length), to: &target)
                pages[offset] = page
            default: break
            }
        }
        for number in 16..<32 as Range<UInt64> {
            var page = try #require(pages[number << 12])
            let segment = UInt16(page[8]) | UInt16(page[9]) << 8
            page[0] = 0
            page[8] = 0
            page[9] = 0
            if UInt64(segment) == number << 8 && page.allSatisfy({ $0 == 0 }) { checkedPages += 1 }
        }
    }
}
