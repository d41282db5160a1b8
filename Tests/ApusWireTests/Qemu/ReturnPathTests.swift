import ApusSystem
import Testing

@testable import ApusWire

/// The return path in both directions: captures, messages made by hand, refusals.
struct ReturnPathTests {
    static let captures = Fixture.names("return", "recovery-return", "preempt-return")
    static let blocks = [RamBlock(name: "pc.ram", usedLength: 65 * 4096), RamBlock(name: "pc.rom", usedLength: 0x2000)]

    private static func table() throws -> RamBlockTable { try RamBlockTable(blocks) }

    /// All messages with their bytes; pieces of a bitmap are joined.
    private static func read(
        _ bytes: [UInt8], table: RamBlockTable, pieces: Int = .max
    ) throws -> (seen: [(message: ReturnMessage, bytes: [UInt8])], left: Int) {
        var reader = ReturnPathReader(table: table)
        var seen: [(message: ReturnMessage, bytes: [UInt8])] = []
        var start = 0
        var given = 0
        while given < bytes.count {
            given += min(pieces, bytes.count - given)
            reading: while true {
                let span = bytes.span.rawBytes.extracting(start..<given)
                switch try reader.next(span) {
                case .needMore(let want):
                    #expect(want > span.byteCount)
                    break reading
                case .element(let message, let length):
                    let part = Array(bytes[start..<start + length])
                    if message == .bitmapBytes, seen.last?.message == .bitmapBytes {
                        seen[seen.count - 1].bytes += part
                    } else {
                        seen.append((message, part))
                    }
                    start += length
                }
            }
        }
        return (seen, bytes.count - start)
    }

    private static func written(_ messages: [(message: ReturnMessage, bytes: [UInt8])], table: RamBlockTable) -> [UInt8]
    {
        var writer = ReturnPathWriter()
        writer.use(table)
        var buffer = StreamBuffer()
        for (message, bytes) in messages {
            writer.write(message, to: &buffer)
            if message == .bitmapBytes { for byte in bytes { buffer.append(byte) } }
        }
        return buffer.array
    }

    @Test("Captures are read and written again identically", arguments: captures)
    func captured(name: String) throws {
        let bytes = try Fixture.load(name)
        let stem = name.split(separator: ".").dropLast().joined(separator: ".")
        let table = try Feeder.read(try Fixture.load(stem + ".main")).reader.table
        let whole = try Self.read(bytes, table: table)
        #expect(whole.left == 0)
        #expect(Self.written(whole.seen, table: table) == bytes)
        let single = try Self.read(bytes, table: table, pieces: 1)
        #expect(single.seen.map(\.message) == whole.seen.map(\.message))
        if !name.contains("recovery.return") { #expect(whole.seen.last?.message == .shut(failed: false)) }
        if name.hasSuffix("return-path.return") {
            #expect(whole.seen.map(\.message) == [.pong(1), .shut(failed: false)])
        }
    }

    @Test func recoveryAnswersWithBitmaps() throws {
        #expect(Self.captures.count == 10)
        let name = "7.2-pc-i440fx-7.2-recovery.recovery-return"
        let main = try Feeder.read(try Fixture.load("7.2-pc-i440fx-7.2-recovery.main")).reader
        let messages = try Self.read(try Fixture.load(name), table: main.table).seen.map(\.message)
        #expect(messages.filter { $0 == .bitmapEnd }.count == main.blocks.count)
        // 514 pages of pc.ram are nine words.
        #expect(messages.first == .receivedBitmap(block: 0, size: 72))
        #expect(messages.contains(.resumeAcknowledged))
        #expect(messages.contains { if case .requestPages(0, _, 4096) = $0 { true } else { false } })
    }

    @Test("Every message survives the way", arguments: [1, 3, 7, 1000])
    func messages(pieces: Int) throws {
        let bitmap = (0..<16).map { UInt8($0) }
        let messages: [(message: ReturnMessage, bytes: [UInt8])] = [
            (.switchoverAcknowledged, []), (.pong(1), []), (.requestPages(block: 1, start: 0x1000, length: 4096), []),
            (.requestPages(block: 1, start: 0, length: 8192), []),
            (.requestPages(block: 0, start: 0, length: 4096), []),
            (.receivedBitmap(block: 0, size: 16), []), (.bitmapBytes, bitmap), (.bitmapEnd, []),
            (.resumeAcknowledged, []),
            (.requestPages(block: 0, start: 0x40000, length: 4096), []), (.shut(failed: true), []),
        ]
        let bytes = Self.written(messages, table: try Self.table())
        #expect(bytes.count == 4 + 8 + 23 + 16 + 23 + 19 + 16 + 8 + 8 + 16 + 8)
        let read = try Self.read(bytes, table: try Self.table(), pieces: pieces)
        #expect(read.seen.map(\.message) == messages.map(\.message))
        #expect(read.seen[6].bytes == bitmap)
        #expect(read.left == 0)
    }

    private func refusal(_ bytes: [UInt8]) throws -> StreamError? {
        do { _ = try Self.read(bytes, table: try Self.table()) } catch { return error as? StreamError }
        return nil
    }

    @Test func messagesAreRefusedByCause() throws {
        for type in [0, 8, 99] as [UInt8] {
            #expect(try refusal([0, type, 0, 0]) == .unknownReturnMessage(type: UInt16(type)))
        }
        for (type, length) in [(1, 3), (2, 5), (3, 13), (4, 13), (5, 1), (6, 0), (7, 1)] as [(UInt8, UInt8)] {
            #expect(
                try refusal([0, type, 0, length]) == .wrongReturnLength(type: UInt16(type), length: Int(length)))
        }
        #expect(try refusal([0, 5, 1, 1]) == .wrongReturnLength(type: 5, length: 257))
        #expect(try refusal([0, 6, 0, 4, 0, 0, 0, 2]) == .badReturnValue(type: 6, value: 2))
        #expect(try refusal([0, 1, 0, 4, 0, 0, 0, 0, 9]) == .bytesAfterEnd)
        let page: [UInt8] = [0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0x10, 0]
        #expect(try refusal([0, 4, 0, 12] + page) == .noPreviousBlock)
        let name = [6] + Array("pc.rom".utf8)
        #expect(try refusal([0, 3, 0, 19] + page + name) == nil)
        #expect(try refusal([0, 3, 0, 19] + page + [5] + name.dropFirst()) == .wrongReturnLength(type: 3, length: 19))
        #expect(try refusal([0, 3, 0, 14] + page + [1, 0x61]) == .unknownBlock(name: "a"))
        let long: [UInt8] = [0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0x20, 0]
        #expect(try refusal([0, 3, 0, 19] + long + name) == .outsideBlock(block: 1, offset: 0x1000, length: 0x2000))
        let empty: [UInt8] = [0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0]
        #expect(try refusal([0, 3, 0, 19] + empty + name) == .unalignedRequest(start: 0x1000, length: 0))
        let odd: [UInt8] = [0, 0, 0, 0, 0, 0, 0x10, 1, 0, 0, 0x10, 0]
        #expect(try refusal([0, 3, 0, 19] + odd + name) == .unalignedRequest(start: 0x1001, length: 0x1000))
        let huge: [UInt8] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 0x10, 0]
        #expect(
            try refusal([0, 3, 0, 19] + huge + name)
                == .outsideBlock(block: 1, offset: 0xffff_ffff_ffff_f000, length: 0x1000))
    }

    @Test func bitmapsHaveTheSizeOfTheirBlock() throws {
        let head: [UInt8] = [0, 5, 0, 7, 6] + Array("pc.ram".utf8) + [0, 0, 0, 0, 0, 0, 0]
        #expect(try refusal(head + [8]) == .wrongBitmapSize(block: 0, size: 8, expected: 16))
        #expect(
            try refusal([0, 5, 0, 7, 6] + Array("pc.ram".utf8) + [0xff, 0, 0, 0, 0, 0, 0, 16])
                == .wrongBitmapSize(block: 0, size: 0xff00_0000_0000_0010, expected: 16))
        #expect(try refusal(head + [16] + [UInt8](repeating: 1, count: 24)) == .wrongBitmapEnd(0x0101_0101_0101_0101))
        #expect(ReturnPathReader.bitmapSize(blockLength: 64 * 4096) == 8)
        #expect(ReturnPathReader.bitmapSize(blockLength: 65 * 4096) == 16)
        #expect(ReturnPathReader.bitmapSize(blockLength: 0) == 0)
    }

    @Test func changedBytesNeverTrap() throws {
        let name = "7.2-pc-i440fx-7.2-recovery.recovery-return"
        let table = try Feeder.read(try Fixture.load("7.2-pc-i440fx-7.2-recovery.main")).reader.table
        let original = try Fixture.load(name)
        var refused = 0
        for seed in 1...500 as ClosedRange<UInt64> {
            var random = Seed(seed)
            var bytes = original
            for _ in 0...random.below(3) { bytes[random.below(bytes.count)] = UInt8(random.below(256)) }
            do { _ = try Self.read(bytes, table: table, pieces: 1 + random.below(64)) } catch is StreamError {
                refused += 1
            }
        }
        #expect(refused > 100)
    }
}
