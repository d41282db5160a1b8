import ApusSystem
import Testing

@testable import ApusWire

/// What the writer owes beyond what the captures show: CONTINUE after changes, and traps for local mistakes.
struct StreamWriterTests {
    private static func writer() throws -> QemuStreamWriter {
        QemuStreamWriter(
            table: try RamBlockTable([RamBlock(name: "a", usedLength: 8192), RamBlock(name: "bb", usedLength: 4096)]))
    }

    @Test func theBlockIsNamedWhenItChangesOrIsForgotten() throws {
        var writer = try Self.writer()
        var buffer = StreamBuffer(capacity: 0)
        var ends: [Int] = []
        for (block, offset) in [(0, 0), (0, 4096), (1, 0), (0, 0), (0, 4096)] as [(Int, UInt64)] {
            if ends.count == 4 { writer.forgetBlock() }
            writer.page(block: block, offset: offset, to: &buffer)
            ends.append(buffer.count)
        }
        #expect(ends == [10, 18, 29, 39, 49])
        #expect(buffer.array[10..<18] == [0, 0, 0, 0, 0, 0, 0x10, 0x28])
        #expect(buffer.array[18..<29] == [0, 0, 0, 0, 0, 0, 0, 8, 2, 0x62, 0x62])
        #expect(buffer.array[39..<49] == [0, 0, 0, 0, 0, 0, 0x10, 8, 1, 0x61])
        buffer.removeAll()
        #expect(buffer.count == 0 && buffer.array.isEmpty)
    }

    @Test func bufferGrowsAndReplaces() {
        var buffer = StreamBuffer(capacity: 0)
        for number in 0..<1000 as Range<UInt32> { buffer.append(number) }
        buffer.replace(0xdead_beef, at: 4)
        let copy = buffer
        buffer.append(copy.bytes)
        #expect(buffer.count == 8000)
        #expect(buffer.array[0..<8] == [0, 0, 0, 0, 0xde, 0xad, 0xbe, 0xef])
        #expect(buffer.array[4000..<8000] == copy.array[...])
        #expect(buffer.array[3996..<4000] == [0, 0, 3, 0xe7])
    }

    @Test func aPageOutsideItsBlockTraps() async {
        await #expect(processExitsWith: .failure) {
            var writer = try Self.writer()
            var buffer = StreamBuffer()
            writer.page(block: 1, offset: 4096, to: &buffer)
        }
        await #expect(processExitsWith: .failure) {
            var writer = try Self.writer()
            var buffer = StreamBuffer()
            writer.zero(block: 0, offset: 12, to: &buffer)
        }
        await #expect(processExitsWith: .failure) {
            var writer = try Self.writer()
            var buffer = StreamBuffer()
            writer.xbzrle(block: 0, offset: 0, dataLength: 4097, to: &buffer)
        }
    }
}
