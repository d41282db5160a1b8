import ApusSystem
import Testing

@testable import ApusWire

/// Sections, commands, packages, device state and the end of the stream, made by hand.
struct StreamSectionTests {
    typealias Write = (inout QemuStreamWriter, inout StreamBuffer) -> Void

    /// Header, ram START, and what `more` adds after its footer.
    private func stream(_ more: Write) throws -> [UInt8] {
        try StreamReaderTests.stream { writer, buffer in
            StreamReaderTests.ending(writer, &buffer)
            more(&writer, &buffer)
        }
    }

    /// What comes after the ram START section.
    private func elements(_ more: Write) throws -> [StreamElement] {
        try StreamReaderTests.elements(try stream(more)).suffix(from: 5).map(\.self)
    }

    private func refusal(_ more: Write) -> StreamError? {
        do { _ = try Feeder.read(try stream(more)) } catch { return error as? StreamError }
        return nil
    }

    private func bytes(_ bytes: [UInt8]) -> Write { { for byte in bytes { $1.append(byte) } } }

    // MARK: Sections

    @Test func unknownIterableSectionsAreRefusedByName() {
        for name in ["block", "vfio", "spapr/htab", "99"] {
            #expect(
                refusal { $0.sectionStart(id: 9, name: name, version: 1, to: &$1) } == .unsupportedSection(name: name))
        }
        #expect(StreamError.unsupportedSection(name: "block").description.contains("migrate -b"))
        #expect(StreamError.unsupportedSection(name: "vfio").description.contains("VFIO"))
        #expect(refusal { $0.sectionStart(id: 2, name: "dirty-bitmap", version: 1, to: &$1) } == .sectionIdInUse(2))
        #expect(refusal { $0.sectionStart(id: 9, name: "ram", version: 4, to: &$1) } == .sectionIdInUse(9))
        #expect(
            refusal { $0.sectionStart(id: 9, name: "ram", version: 3, to: &$1) }
                == .unsupportedSectionVersion(name: "ram", version: 3, instance: 0))
        #expect(
            refusal { $0.sectionStart(id: 9, name: "dirty-bitmap", instance: 1, version: 1, to: &$1) }
                == .unsupportedSectionVersion(name: "dirty-bitmap", version: 1, instance: 1))
        #expect(
            refusal { $0.sectionFull(id: 9, name: "ram", instance: 0, version: 4, to: &$1) }
                == .iterableAsDevice(name: "ram"))
        #expect(refusal { $0.sectionPart(id: 99, to: &$1) } == .unknownSectionId(99))
        #expect(refusal { $0.sectionEnd(id: 99, to: &$1) } == .unknownSectionId(99))
    }

    @Test func wrongTypesAndFootersAreRefused() throws {
        for type in [5, 6, 7, 9, 0x7e, 99, 255] as [UInt8] {
            #expect(refusal(bytes([type])) == .unexpectedElement(type: type))
        }
        for (type, id) in [(0x7e, 3), (0x7f, 2)] as [(UInt8, UInt32)] {
            let wrong: Write = { writer, buffer in
                writer.sectionPart(id: 2, to: &buffer)
                writer.endOfRecords(to: &buffer)
                buffer.append(type)
                buffer.append(id)
            }
            #expect(refusal(wrong) == .wrongFooter(type: type, id: id, expected: 2))
        }
    }

    @Test func bitmapChunksAreBounded() throws {
        func chunk(_ chunk: [UInt8]) -> Write {
            { writer, buffer in
                writer.sectionStart(id: 5, name: "dirty-bitmap", version: 1, to: &buffer)
                for byte in chunk { buffer.append(byte) }
            }
        }
        let named: [UInt8] = [0x1c, 1, 0x61, 2, 0x62, 0x63, 0, 1, 0, 0, 0]
        let bits: [UInt8] = [0x40] + [UInt8](repeating: 0, count: 19) + [2, 0xff, 0xff]
        let zeroes: [UInt8] = [0x42] + [UInt8](repeating: 0, count: 12)
        let whole = named + bits + zeroes + [0x20, 0x01, 0x7e, 0, 0, 0, 5]
        #expect(
            try elements(chunk(whole)).suffix(6) == [
                .bitmapChunk(flags: 0x1c), .bitmapChunk(flags: 0x40), .bitmapChunk(flags: 0x42),
                .bitmapChunk(flags: 0x20),
                .bitmapChunk(flags: 0x01), .footer(id: 5),
            ])
        for flags in [0x00, 0x80, 0x30, 0x60, 0x11, 0x50] as [UInt8] {
            #expect(refusal(chunk([flags] + named.dropFirst())) == .unsupportedBitmapChunk(flags: flags))
        }
        // Found by the fuzzer: a chunk within its limit asked for more than an element may.
        let head: [UInt8] = [0x40] + [UInt8](repeating: 0, count: 12) + [0, 0, 0, 0, 0, 1, 0]
        #expect(refusal(chunk(head + [0])) == nil)
        #expect(refusal(chunk(head + [1])) == .limit("Bitmap chunk bytes", value: 1 << 16 | 1, limit: 1 << 16))
    }

    // MARK: Commands

    @Test func commandsSurviveTheWay() throws {
        let commands: [StreamCommand] = [
            .openReturnPath, .ping(0xdead_beef), .postcopyAdvise(pageSizes: 0x20_1000, targetPageSize: 4096),
            .postcopyAdviseBitmaps, .postcopyListen, .postcopyRun, .postcopyResume, .receiveBitmap(block: 1),
            .switchoverStart,
        ]
        #expect(
            try elements { writer, buffer in for command in commands { writer.command(command, to: &buffer) } }
                == commands.map { .command($0) })
        let ranges = [PageRange(start: 0, length: 0x2000), PageRange(start: 0xf000, length: 0x1000)]
        let feeder = try Feeder.read(try stream { $0.discard(block: 0, ranges: ranges, to: &$1) })
        #expect(feeder.seen.last?.element == .command(.postcopyDiscard(block: 0, ranges: 2)))
        let raw = feeder.seen.last?.bytes ?? []
        #expect((0..<2).map { PageRange(discard: raw.span.rawBytes, index: $0, of: 2) } == ranges)
        #expect(try elements(bytes([8, 0, 99, 0, 2, 1, 2])) == [.command(.unknown(number: 99, length: 2))])
    }

    @Test func commandsAreRefusedByCause() {
        for number in [1, 2, 4, 5, 7, 8, 9, 11] as [UInt8] {
            #expect(
                refusal(bytes([8, 0, number, 0, 3, 0, 0, 0])) == .wrongCommandLength(command: UInt16(number), length: 3)
            )
        }
        #expect(refusal(bytes([8, 0, 3, 0, 15])) == .wrongCommandLength(command: 3, length: 15))
        #expect(refusal(bytes([8, 0, 8, 0, 0])) == .coloRequested)
        #expect(refusal(bytes([8, 0, 10, 0, 0])) == .wrongCommandLength(command: 10, length: 0))
        #expect(refusal(bytes([8, 0, 10, 0, 3, 1, 0x61, 0])) == .wrongCommandLength(command: 10, length: 3))
        #expect(refusal(bytes([8, 0, 10, 0, 2, 1, 0x61])) == .unknownBlock(name: "a"))
        let name = [6] + Array("pc.ram".utf8)
        let range: [UInt8] = [0, 0, 0, 0, 0, 0, 0xf0, 0, 0, 0, 0, 0, 0, 0, 0x20, 0]
        func discard(_ payload: [UInt8]) -> StreamError? {
            refusal(bytes([8, 0, 6, 0, UInt8(payload.count)] + payload))
        }
        #expect(discard([0] + name + [0]) == nil)
        #expect(discard([0] + name + [0] + range) == .outsideBlock(block: 0, offset: 0xf000, length: 0x2000))
        #expect(discard([1] + name + [0]) == .badDiscard(version: 1, terminator: 0))
        #expect(discard([0] + name + [7]) == .badDiscard(version: 0, terminator: 7))
        #expect(discard([0] + name + [0, 1]) == .wrongCommandLength(command: 6, length: 10))
        #expect(discard([0]) == .wrongCommandLength(command: 6, length: 1))
        #expect(discard([0, 200, 0]) == .wrongCommandLength(command: 6, length: 3))
        #expect(discard([0, 1, 0x61, 0]) == .unknownBlock(name: "a"))
    }

    // MARK: Package

    /// PACKAGED around what `content` writes, with `extra` added to the announced length.
    private func package(extra: Int = 0, _ content: @escaping Write, then: @escaping Write = { _, _ in }) -> Write {
        { writer, buffer in
            var inner = StreamBuffer()
            content(&writer, &inner)
            writer.command(.packaged(length: inner.count + extra), to: &buffer)
            buffer.append(inner.bytes)
            then(&writer, &buffer)
        }
    }

    private func device(_ size: Int, pings: Int, run: Bool = true) -> Write {
        { writer, buffer in
            writer.sectionFull(id: 7, name: "serial", instance: 0, version: 3, to: &buffer)
            for index in 0..<size { buffer.append(UInt8(truncatingIfNeeded: index)) }
            writer.footer(id: 7, to: &buffer)
            for index in 0..<pings { writer.command(.ping(UInt32(3 + index)), to: &buffer) }
            if run { writer.command(.postcopyRun, to: &buffer) }
        }
    }

    @Test(
        "The commands at the end of a package are found behind device state", arguments: [1, 33, 34, 200], [0, 1, 2, 4])
    func packageTail(size: Int, pings: Int) throws {
        let read = try elements(package(device(size, pings: pings), then: { $0.command(.ping(9), to: &$1) }))
        let tail = (0..<pings).map { StreamElement.command(.ping(UInt32(3 + $0))) }
        #expect(read[0] == .command(.packaged(length: 20 + size + 5 + 9 * pings + 5)))
        #expect(
            read[2...].map(\.self) == [.deviceBytes] + tail + [.command(.postcopyRun), .packageEnd, .command(.ping(9))])
    }

    @Test func packagesWithoutRunAndEmptyOnes() throws {
        #expect(try elements(package(device(100, pings: 1, run: false))).suffix(2) == [.deviceBytes, .packageEnd])
        #expect(try elements(package({ _, _ in })) == [.command(.packaged(length: 0)), .packageEnd])
        let inside: Write = { $0.command(.ping(1), to: &$1) }
        #expect(try elements(package(inside)).suffix(2) == [.command(.ping(1)), .packageEnd])
    }

    @Test func packagesAreBounded() {
        let inside: Write = { $0.command(.ping(1), to: &$1) }
        #expect(refusal(package(extra: -1, inside)) == .crossesPackage(left: 8))
        #expect(refusal(package(package(inside))) == .nestedPackage)
        #expect(refusal(package { $0.endOfFile(to: &$1) }) == .unexpectedElement(type: 0))
        let half: Write = { $0.sectionPart(id: 2, to: &$1) }
        #expect(refusal(package(half)) == .crossesPackage(left: 0))
    }

    @Test func postcopyEndsWithoutDescription() throws {
        let write = package(device(50, pings: 1)) { writer, buffer in
            writer.sectionEnd(id: 2, to: &buffer)
            StreamReaderTests.ending(writer, &buffer)
            writer.endOfFile(to: &buffer)
        }
        let read = try elements(write)
        #expect(throws: StreamError.bytesAfterEnd) { try Feeder.read(try stream(write) + [6]) }
        #expect(read.suffix(3) == [.footer(id: 2), .endOfFile, .end])
    }

    // MARK: Device state and end

    private static let description = Array("{\"page_size\":4096}".utf8)

    private func finish(_ writer: QemuStreamWriter, _ buffer: inout StreamBuffer) {
        writer.footer(id: 7, to: &buffer)
        writer.endOfFile(to: &buffer)
        writer.vmDescription(length: UInt32(Self.description.count), to: &buffer)
        for byte in Self.description { buffer.append(byte) }
    }

    private func deviceState(_ content: [UInt8]) -> Write {
        { writer, buffer in
            writer.sectionFull(id: 7, name: "serial", instance: 0, version: 3, to: &buffer)
            for byte in content { buffer.append(byte) }
            finish(writer, &buffer)
        }
    }

    /// Feeds in one piece and byte by byte, and returns the elements once both agree.
    private func both(_ bytes: [UInt8]) throws -> [StreamElement] {
        let whole = try Feeder.read(bytes)
        var feeder = Feeder()
        for byte in bytes { try feeder.feed(CollectionOfOne(byte)) }
        #expect(feeder.left == 0 && whole.left == 0)
        let joined = feeder.seen.map(\.bytes).reduce([], +)
        #expect(joined == bytes && whole.seen.map(\.bytes).reduce([], +) == bytes)
        return feeder.seen.map(\.element)
    }

    private static let end: [StreamElement] = [
        .deviceBytes, .endOfFile, .vmDescription(length: 18), .vmDescriptionBytes, .end,
    ]

    @Test func plainEnd() throws {
        #expect(try both(try stream(deviceState([1, 2, 3]))).suffix(5) == Self.end[...])
    }

    /// Each content looks like an end in some way; the real end must be found behind it all the same.
    @Test(
        "A false end in device state is refuted",
        arguments: [
            [0x7e, 0, 0, 0, 9, 0],  // footer and EOF
            [0x7e, 0, 0, 0, 9, 0, 6],
            [0x7e, 0, 0, 0, 9, 0, 6, 0x7e, 0, 0, 0, 9, 0],
            [0x7e, 0, 0, 0, 9, 0, 6, 0, 0, 1, 0, 0x7b, 0x22],  // a description that never ends
            [0x7e, 0, 0, 0, 9, 0, 6, 0, 0, 1, 0, 0x7b, 0x22, 0x7e, 0x7e],
            [0x7e, 0, 0, 0, 9, 0, 6, 0, 0, 0, 2, 0x7b, 0x22],  // one that does not end with }
            [0x7e, 0, 0, 0, 9, 0, 6, 0, 0, 0, 4, 0x7b, 0x22, 0x22, 0x7d],  // a complete one
            [0x7e, 0, 0, 0, 9, 0, 6, 0, 0, 0, 4, 0x7b, 0x22, 0x22, 0x7d, 0x7e, 0, 0, 0x7e, 0],
            [0x7e, 0, 0, 0x7e, 0, 0, 0, 9, 0],
        ] as [[UInt8]])
    func falseEnd(content: [UInt8]) throws {
        #expect(try both(try stream(deviceState(content))).suffix(5) == Self.end[...])
    }

    @Test func aCompleteFalseEndIsTakenBack() throws {
        let fake: [UInt8] = [0x7e, 0, 0, 0, 9, 0, 6, 0, 0, 0, 4, 0x7b, 0x22, 0x22, 0x7d]
        let read = try both(try stream(deviceState(fake)))
        #expect(read.filter { $0 == .end }.count == 2)
        #expect(
            read.suffix(10).prefix(5) == [
                .deviceBytes, .endOfFile, .vmDescription(length: 4), .vmDescriptionBytes, .end,
            ])
    }

    @Test func machineTypesWithoutDescription() throws {
        let bytes = try stream { writer, buffer in
            writer.sectionFull(id: 7, name: "serial", instance: 0, version: 3, to: &buffer)
            writer.footer(id: 7, to: &buffer)
            writer.endOfFile(to: &buffer)
        }
        let feeder = try Feeder.read(bytes)
        #expect(feeder.seen.suffix(2).map(\.element) == [.deviceBytes, .endOfFile])
        #expect(feeder.left == 0)
        try feeder.reader.finish(left: 0)
        #expect(throws: StreamError.truncated(position: UInt64(bytes.count))) { try feeder.reader.finish(left: 1) }
        let shorter = try Feeder.read(bytes.dropLast())
        #expect(throws: StreamError.truncated(position: UInt64(bytes.count - 1))) { try shorter.reader.finish(left: 0) }
    }

    @Test func aDescriptionAboveTheLimitIsDeviceState() throws {
        var limits = StreamLimits()
        limits.vmDescriptionBytes = 17
        var feeder = Feeder(QemuStreamReader(limits: limits))
        try feeder.feed(try stream(deviceState([1])))
        #expect(feeder.seen.suffix(3).map(\.element) == [.deviceBytes, .endOfFile, .deviceBytes])
    }

    @Test func bytesAfterThePreemptChannel() throws {
        let main = try Feeder.read(try stream { _, _ in }).reader
        var writer = QemuStreamWriter(table: main.table)
        var buffer = StreamBuffer()
        writer.zero(block: 1, offset: 0, to: &buffer)
        writer.endOfRecords(to: &buffer)
        let reader = QemuStreamReader(preemptChannelOf: main)
        #expect(
            try Feeder.read(buffer.array, with: reader).seen.map(\.element) == [
                .zero(block: 1, offset: 0), .endOfRecords,
            ])
        #expect(throws: StreamError.bytesAfterEnd) { try Feeder.read(buffer.array + [0], with: reader) }
    }

    // MARK: Device sections before RAM

    /// Header, one device section with this body, then what `next` writes.
    private func early(_ body: [UInt8], limit: Int? = nil, _ next: Write) throws -> Feeder {
        var writer = QemuStreamWriter()
        var buffer = StreamBuffer()
        writer.header(machine: "pc-q35-10.0", to: &buffer)
        writer.sectionFull(id: 3, name: "virtio-mem-early", instance: 0, version: 1, to: &buffer)
        for byte in body { buffer.append(byte) }
        writer.footer(id: 3, to: &buffer)
        next(&writer, &buffer)
        var limits = StreamLimits()
        if let limit { limits.earlyDeviceBytes = limit }
        var feeder = Feeder(QemuStreamReader(limits: limits))
        for byte in buffer.array { try feeder.feed(CollectionOfOne(byte)) }
        return feeder
    }

    @Test(
        "The end of a device section before RAM is found",
        arguments: [
            [], [1, 2, 3], [0x7e], [0x7e, 0, 0, 0, 3], [0x7e, 0, 0, 0, 3, 1], [0x7e, 0x7e, 0, 0, 0x7e, 0, 0],
            [0x7e, 0, 0, 0, 3, 4, 0, 0, 0, 1, 1, 0x1f], [0x7e, 0, 0, 0, 3, 8, 0, 99, 0, 0],
        ] as [[UInt8]])
    func earlyDevice(body: [UInt8]) throws {
        let nexts: [(StreamElement, Write)] = [
            (.command(.openReturnPath), { $0.command(.openReturnPath, to: &$1) }),
            (
                .sectionStart(SectionHead(id: 2, kind: .ram, instance: 0, version: 4, nameLength: 3)),
                { $0.sectionStart(id: 2, name: "ram", version: 4, to: &$1) }
            ),
        ]
        for (element, write) in nexts {
            let feeder = try early(body, write)
            #expect(feeder.seen.suffix(2).map(\.element) == [.footer(id: 3), element])
            #expect(feeder.seen.dropFirst(2).dropLast(2).map(\.bytes) == (body.isEmpty ? [] : [body]))
            #expect(!feeder.reader.isOpaque)
        }
    }

    @Test func earlyDevicesAreBounded() throws {
        #expect(throws: StreamError.limit("Early device bytes", value: 101, limit: 100)) {
            try early([UInt8](repeating: 0x55, count: 200), limit: 100) { _, _ in }
        }
    }

    @Test func everyErrorHasAMessageOfItsOwn() {
        let errors: [StreamError] = [
            .mappedRam, .coloRequested, .nestedPackage, .badName, .emptyBlockList, .repeatedBlockList,
            .missingBlockList,
            .noPreviousBlock,
            .bytesAfterEnd, .unknownBlock(name: "x"), .duplicateBlock(name: "x"), .unsupportedSection(name: "x"),
            .unsupportedRecord(flags: 0x80), .unsupportedRecord(flags: 1), .limit("Things", value: 2, limit: 1),
            .truncated(position: 7), .notMigrationStream(magic: 1), .unknownCapability(name: "x"),
        ]
        #expect(Set(errors.map(\.description)).count == errors.count)
        #expect(StreamError.mappedRam.description.contains("switch"))
    }
}
