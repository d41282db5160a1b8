import ApusSystem
import Testing

@testable import ApusWire

/// Each kind of element and each documented refusal, on streams made by hand.
struct StreamReaderTests {
    static let blocks = [
        RamBlock(name: "pc.ram", usedLength: 0x10000), RamBlock(name: "/rom@etc/acpi/tables", usedLength: 0x2000),
    ]

    /// Header, ram START with the block list, and what `more` adds; the section is open.
    static func stream(
        _ blocks: [RamBlock] = Self.blocks, capabilities: [String]? = nil,
        _ more: (inout QemuStreamWriter, inout StreamBuffer) -> Void = { _, _ in }
    ) throws -> [UInt8] {
        var writer = QemuStreamWriter()
        var buffer = StreamBuffer(capacity: 1)
        writer.header(machine: "pc-q35-7.2", to: &buffer)
        if let capabilities { writer.capabilities(capabilities, to: &buffer) }
        writer.sectionStart(id: 2, name: "ram", version: 4, to: &buffer)
        writer.blockList(try RamBlockTable(blocks), withAddresses: capabilities != nil, to: &buffer)
        more(&writer, &buffer)
        return buffer.array
    }

    static func ending(_ writer: QemuStreamWriter, _ buffer: inout StreamBuffer) {
        writer.endOfRecords(to: &buffer)
        writer.footer(id: 2, to: &buffer)
    }

    static func elements(_ bytes: [UInt8]) throws -> [StreamElement] { try Feeder.read(bytes).seen.map(\.element) }

    // MARK: Header

    @Test func headerIsRefusedByCause() throws {
        let good = try Self.stream()
        func refusal(_ change: (inout [UInt8]) -> Void) -> StreamError? {
            var bytes = good
            change(&bytes)
            do { _ = try Feeder.read(bytes) } catch { return error as? StreamError }
            return nil
        }
        #expect(refusal { $0[0] = 0x11 } == .notMigrationStream(magic: 0x1145_564d))
        #expect(refusal { $0[7] = 2 } == .unsupportedVersion(2))
        #expect(refusal { $0[8] = 1 } == .missingConfiguration(marker: 1))
        #expect(refusal { $0[11] = 9 } == .limit("Machine name bytes", value: 9 << 8 | 10, limit: 255))
        #expect(refusal { $0[15] = 0xff } == .badName)
        #expect(refusal { $0[23] = 0x63 } == .unexpectedElement(type: 99))
        #expect(refusal { _ in } == nil)
    }

    @Test func configurationIsReadOrRefused() throws {
        func read(_ write: (QemuStreamWriter, inout StreamBuffer) -> Void) throws -> QemuStreamReader {
            let writer = QemuStreamWriter()
            var buffer = StreamBuffer()
            writer.header(machine: "virt-7.2", to: &buffer)
            write(writer, &buffer)
            return try Feeder.read(buffer.array).reader
        }
        #expect(try read { $0.targetPageBits(12, to: &$1) }.machine == "virt-7.2")
        #expect(throws: StreamError.unsupportedPageBits(16)) { try read { $0.targetPageBits(16, to: &$1) } }
        #expect(try read { $0.capabilities(["x-ignore-shared"], to: &$1) }.ignoresShared)
        #expect(throws: StreamError.mappedRam) {
            try read { $0.capabilities(["x-ignore-shared", "mapped-ram"], to: &$1) }
        }
        #expect(throws: StreamError.unknownCapability(name: "later")) {
            try read { $0.capabilities(["later"], to: &$1) }
        }
        #expect(throws: StreamError.limit("Capabilities", value: 65, limit: 64)) {
            try read { $0.capabilities([String](repeating: "x-ignore-shared", count: 65), to: &$1) }
        }
        #expect(throws: StreamError.unknownConfiguration(name: "configuration/99", version: 1)) {
            try read { _, buffer in
                buffer.append(UInt8(5))
                buffer.append(name: "configuration/99")
                buffer.append(UInt32(1))
            }
        }
        #expect(throws: StreamError.unknownConfiguration(name: "configuration/uuid", version: 2)) {
            try read { _, buffer in
                buffer.append(UInt8(5))
                buffer.append(name: "configuration/uuid")
                buffer.append(UInt32(2))
            }
        }
    }

    // MARK: Block list

    @Test("Page sizes and addresses are found without being announced", arguments: [false, true], [0, 1, 2, 3])
    func blockFields(shared: Bool, huge: Int) throws {
        // `huge` says which of the two blocks have huge pages; the second is the last, where another rule holds.
        var blocks = Self.blocks
        blocks[0].usedLength = 0x20_0000
        blocks[1].usedLength = 0x20_0000
        if huge & 1 != 0 { blocks[0].pageSize = 0x20_0000 }
        if huge & 2 != 0 { blocks[1].pageSize = 0x20_0000 }
        if shared { for index in 0...1 { blocks[index].guestAddress = UInt64(index) * 0x20_0000 } }
        let bytes = try Self.stream(blocks, capabilities: shared ? ["x-ignore-shared"] : nil) {
            Self.ending($0, &$1)
        }
        let feeder = try Feeder.read(bytes)
        #expect(feeder.reader.blocks == blocks)
        #expect(feeder.seen.suffix(3).map(\.element) == [.blockList(count: 2), .endOfRecords, .footer(id: 2)])
    }

    @Test func blockListIsBounded() throws {
        func read(_ blocks: [RamBlock], _ limits: StreamLimits = StreamLimits(), total: UInt64? = nil) throws {
            var bytes = try Self.stream(blocks) { Self.ending($0, &$1) }
            if let total {
                var buffer = StreamBuffer()
                buffer.append(total | 4)
                bytes.replaceSubrange(40..<48, with: buffer.array)
            }
            var feeder = Feeder(QemuStreamReader(limits: limits))
            try feeder.feed(bytes)
        }
        try read(Self.blocks)
        try read(Self.blocks, total: 0x12000)
        // Found by the fuzzer: an empty list let a second one through.
        #expect(throws: StreamError.emptyBlockList) { try read(Self.blocks, total: 0) }
        var few = StreamLimits()
        few.blocks = 1
        #expect(throws: StreamError.limit("RAM blocks", value: 2, limit: 1)) { try read(Self.blocks, few) }
        #expect(throws: StreamError.limit("RAM bytes", value: 1 << 53, limit: 1 << 52)) {
            try read(Self.blocks, total: 1 << 53)
        }
        #expect(throws: StreamError.blockListMismatch(left: 0x1000, length: 0x2000)) {
            try read(Self.blocks, total: 0x11000)
        }
        // One page more is announced: the reader takes the EOS behind the last block for a number of it.
        #expect(throws: StreamError.badBlockPageSize(16)) { try read(Self.blocks, total: 0x13000) }
        #expect(throws: StreamError.badBlockPageSize(12288)) {
            try read([RamBlock(name: "a", usedLength: 0x3000, pageSize: 12288)])
        }
        let many = (0..<1024).map { RamBlock(name: "block\($0)", usedLength: 4096) }
        try read(many)
        #expect(throws: StreamError.limit("RAM blocks", value: 1025, limit: 1024)) {
            try read(many + [RamBlock(name: "one.more", usedLength: 4096)])
        }
    }

    @Test func aLongBlockListMayComeInSmallPieces() throws {
        let blocks = (0..<1024).map {
            RamBlock(name: "block\($0)", usedLength: 4096, pageSize: $0 % 3 == 0 ? 8192 : 4096)
        }
        let bytes = try Self.stream(blocks) { Self.ending($0, &$1) }
        var feeder = Feeder()
        for start in stride(from: 0, to: bytes.count, by: 61) {
            try feeder.feed(bytes[start..<min(start + 61, bytes.count)])
        }
        #expect(feeder.reader.blocks == blocks)
        #expect(feeder.seen.last?.element == .footer(id: 2))
        // Blocks of no length do not stretch the list beyond the limit of blocks.
        let empty = (0..<2000).map { RamBlock(name: "block\($0)", usedLength: $0 == 1999 ? 4096 : 0) }
        #expect(throws: StreamError.limit("RAM blocks", value: 1025, limit: 1024)) {
            try Feeder.read(try Self.stream(empty))
        }
    }

    @Test func blockNamesAreChecked() throws {
        var twice = try Self.stream([RamBlock(name: "aa", usedLength: 4096), RamBlock(name: "ab", usedLength: 4096)]) {
            Self.ending($0, &$1)
        }
        let second = try #require(twice.lastIndex(of: UInt8(ascii: "b")))
        twice[second] = UInt8(ascii: "a")
        #expect(throws: StreamError.duplicateBlock(name: "aa")) { try Feeder.read(twice) }
        #expect(throws: StreamError.duplicateBlock(name: "a")) {
            try RamBlockTable([RamBlock(name: "a", usedLength: 0), RamBlock(name: "a", usedLength: 0)])
        }
        for name in ["", "tab\t", "ü", String(repeating: "x", count: 256)] {
            #expect(throws: StreamError.badName) { try RamBlockTable([RamBlock(name: name, usedLength: 0)]) }
        }
        #expect(throws: StreamError.repeatedBlockList) {
            try Feeder.read(try Self.stream { $0.blockList($0.table, withAddresses: false, to: &$1) })
        }
        #expect(throws: StreamError.unalignedBlock(length: 4097)) {
            var bytes = try Self.stream([RamBlock(name: "a", usedLength: 8192)]) { Self.ending($0, &$1) }
            bytes.replaceSubrange(56..<58, with: [0x10, 0x01])
            _ = try Feeder.read(bytes)
        }
    }

    // MARK: Records

    @Test func recordsNameTheirBlockOnce() throws {
        let page = [UInt8](repeating: 7, count: 4096)
        let bytes = try Self.stream { writer, buffer in
            writer.page(block: 0, offset: 0x1000, to: &buffer)
            for byte in page { buffer.append(byte) }
            writer.zero(block: 0, offset: 0xf000, to: &buffer)
            writer.zero(block: 1, offset: 0x1000, to: &buffer)
            Self.ending(writer, &buffer)
            // CONTINUE reaches over the section's border.
            writer.sectionPart(id: 2, to: &buffer)
            writer.xbzrle(block: 1, offset: 0, dataLength: 3, to: &buffer)
            for byte in [0, 1, 9] as [UInt8] { buffer.append(byte) }
            writer.compressed(block: 1, offset: 0, dataLength: 2, to: &buffer)
            buffer.append(UInt16(0x789c))
            writer.multifdFlush(to: &buffer)
            Self.ending(writer, &buffer)
        }
        let feeder = try Feeder.read(bytes)
        let seen = feeder.seen.dropFirst(3)
        #expect(
            seen.map(\.element) == [
                .page(block: 0, offset: 0x1000), .zero(block: 0, offset: 0xf000), .zero(block: 1, offset: 0x1000),
                .endOfRecords, .footer(id: 2), .sectionPart(id: 2, kind: .ram),
                .xbzrle(block: 1, offset: 0, dataLength: 3), .compressed(block: 1, offset: 0, dataLength: 2),
                .multifdFlush,
                .endOfRecords, .footer(id: 2),
            ])
        #expect(seen.map(\.bytes.count) == [8 + 7 + 4096, 9, 9 + 21, 8, 5, 5, 8 + 3 + 3, 8 + 4 + 2, 8, 8, 5])
    }

    /// The error that a record with this first word and these bytes behind it gives, after one named record of pc.ram.
    private func refusal(_ word: UInt64, _ more: [UInt8] = [], named: Bool = true) throws -> StreamError? {
        let bytes = try Self.stream { writer, buffer in
            if named { writer.zero(block: 0, offset: 0, to: &buffer) }
            buffer.append(word)
            for byte in more { buffer.append(byte) }
        }
        do { _ = try Feeder.read(bytes) } catch { return error as? StreamError }
        return nil
    }

    @Test func recordsAreRefusedByCause() throws {
        #expect(try refusal(0x0) == .unsupportedRecord(flags: 0))
        #expect(try refusal(0x1) == .unsupportedRecord(flags: 1))
        #expect(try refusal(0x80) == .unsupportedRecord(flags: 0x80))
        #expect(try refusal(0x400) == .unsupportedRecord(flags: 0x400))
        #expect(try refusal(0x2a) == .unsupportedRecord(flags: 0x2a))
        #expect(try refusal(0x30) == .unsupportedRecord(flags: 0x30))
        #expect(try refusal(0x220) == .unsupportedRecord(flags: 0x220))
        #expect(try refusal(0x1010) == .unsupportedRecord(flags: 0x1010))
        #expect(try refusal(0x24) == .unsupportedRecord(flags: 0x24))
        #expect(try refusal(0x10028) == .outsideBlock(block: 0, offset: 0x10000, length: 4096))
        #expect(
            try refusal(0xffff_ffff_ffff_f028) == .outsideBlock(block: 0, offset: 0xffff_ffff_ffff_f000, length: 4096))
        #expect(try refusal(0x2, [3, 0x66, 0x6f, 0x6f]) == .unknownBlock(name: "foo"))
        #expect(try refusal(0x2, [1, 0xc3]) == .badName)
        #expect(try refusal(0x2, [0]) == .badName)
        #expect(try refusal(0x22, [1]) == .nonZeroFill(1))
        #expect(try refusal(0x62) == .unsupportedRecord(flags: 0x62))
        #expect(try refusal(0x60, [2, 0, 1]) == .badXbzrleHeader(encoding: 2, length: 1))
        #expect(try refusal(0x60, [1, 0x10, 1]) == .badXbzrleHeader(encoding: 1, length: 4097))
        #expect(try refusal(0x60, [1, 0x10, 0]) == nil)
        #expect(try refusal(0x120, [0, 0, 0, 0]) == .badCompressedLength(0))
        #expect(try refusal(0x120, [0, 0, 0x10, 0x0f]) == .badCompressedLength(4111))
        #expect(try refusal(0x120, [0, 0, 0x10, 0x0e]) == nil)
        #expect(try refusal(0x28, named: false) == .noPreviousBlock)
        #expect(try refusal(0x2, [6] + Array("pc.ram".utf8) + [9], named: false) == .nonZeroFill(9))
    }

    @Test func recordsBeforeTheBlockList() throws {
        var buffer = StreamBuffer()
        let writer = QemuStreamWriter()
        writer.header(machine: "m", to: &buffer)
        writer.sectionStart(id: 2, name: "ram", version: 4, to: &buffer)
        buffer.append(UInt64(0x22))
        #expect(throws: StreamError.missingBlockList) { try Feeder.read(buffer.array) }
    }
}
