import ApusMemory
import ApusSystem
import ApusWire
import Testing

/// Frames about pages that need not travel, from a peer that may be hostile.
@Suite struct ReferencePayloadTests {
    private func frame(_ count: Int) -> [UInt8] {
        var buffer = PageBuffer(byteCount: ReferencePayload.bytesMax)
        ReferencePayload.store(.init(number: 77, count: count, place: 3), in: &buffer)
        for index in 0..<count {
            let digest = Digest.of([UInt8(index)].rawBytes)
            ReferencePayload.store(
                .init(page: PageNumber(index * 5), at: UInt32.max - UInt32(index), digest: digest), at: index,
                in: &buffer)
        }
        return buffer.bytes.extracting(0..<ReferencePayload.headBytes + count * ReferencePayload.entryBytes).bytesCopied
    }

    @Test(arguments: [1, 2, 64]) func referencesComeBack(count: Int) throws {
        let bytes = frame(count)
        #expect(try ReferencePayload.head(bytes.rawBytes) == .init(number: 77, count: count, place: 3))
        for index in 0..<count {
            let entry = ReferencePayload.entry(bytes.rawBytes, at: index)
            #expect(entry.page == PageNumber(index * 5) && entry.at == UInt32.max - UInt32(index))
            #expect(entry.digest == Digest.of([UInt8(index)].rawBytes))
        }
    }

    @Test func otherLengthsAreRefused() {
        let bytes = frame(2)
        for length in [0, 7, 8, 9, 47, 48, 87] {
            #expect(throws: FrameError.self) { try ReferencePayload.head(bytes.rawBytes.extracting(0..<length)) }
        }
        #expect(throws: FrameError.self) { try ReferencePayload.head((bytes + [0]).rawBytes) }
        var many = [UInt8](repeating: 0, count: ReferencePayload.headBytes + 65 * ReferencePayload.entryBytes)
        many[4] = 65
        #expect(throws: FrameError.self) { try ReferencePayload.head(many.rawBytes) }
        var flagged = bytes
        flagged[7] = 1
        #expect(throws: FrameError.self) { try ReferencePayload.head(flagged.rawBytes) }
    }

    @Test func anAnswerIsOneOrTheOther() throws {
        var buffer = PageBuffer(byteCount: ReferenceAnswer.byteCount)
        let answer = ReferenceAnswer(number: 9, proved: 0b0101, refused: 0b1010, readNs: 1234)
        answer.store(in: &buffer)
        #expect(try ReferenceAnswer(buffer.bytes) == answer)
        ReferenceAnswer(number: 9, proved: 3, refused: 6, readNs: 0).store(in: &buffer)
        let both = buffer.bytes.bytesCopied
        #expect(throws: FrameError.self) { try ReferenceAnswer(both.rawBytes) }
        #expect(throws: FrameError.self) { try ReferenceAnswer(both.rawBytes.extracting(0..<31)) }
    }

    @Test func heldPagesStayInTheSnapshot() throws {
        let bytes = try #require(HeldPayload.bytes(pageCount: 100, first: 90, count: 10) { UInt64($0) * 3 })
        let head = try HeldPayload.head(bytes.rawBytes)
        #expect(head.pageCount == 100 && head.first == 90 && head.count == 10)
        #expect(HeldPayload.hint(bytes.rawBytes, at: 9) == 297)
        #expect(HeldPayload.bytes(pageCount: 100, first: 0, count: 100) { _ in 0 } == nil)
        var beyond = bytes
        beyond[4] = 91
        #expect(throws: FrameError.self) { try HeldPayload.head(beyond.rawBytes) }
        #expect(throws: FrameError.self) { try HeldPayload.head(bytes.rawBytes.extracting(0..<12)) }
    }
}
