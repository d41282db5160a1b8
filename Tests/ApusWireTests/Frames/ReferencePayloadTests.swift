import ApusMemory
import ApusSystem
import ApusWire
import Testing

/// Frames about pages that need not travel, from a peer that may be hostile.
@Suite struct ReferencePayloadTests {
    private typealias Entry = ReferencePayload.Entry

    private func frame(_ entries: [Entry]) -> [UInt8] {
        var buffer = PageBuffer(byteCount: ReferencePayload.bytesMax)
        ReferencePayload.store(.init(number: 77, count: entries.count, place: 3), in: &buffer)
        for (index, entry) in entries.enumerated() { ReferencePayload.store(entry, at: index, in: &buffer) }
        let byteCount = ReferencePayload.headBytes + entries.count * ReferencePayload.entryBytes
        return buffer.bytes.extracting(0..<byteCount).bytesCopied
    }

    /// Of runs of so many pages, each as far behind the one before as its own index says.
    private func entries(_ runs: [Int]) -> [Entry] {
        var next = 0
        return runs.enumerated().map { index, pages in
            let page = next + index
            next = page + pages
            return Entry(
                page: PageNumber(page), at: .max - UInt32(index), pages: pages,
                digest: Digest.of([UInt8(index)].rawBytes))
        }
    }

    @Test(arguments: [
        [1], [16], [1, 1], [16, 16, 16, 16], [3, 16, 1, 12, 7, 1, 16, 8], Array(repeating: 1, count: 64),
    ])
    func referencesComeBack(runs: [Int]) throws {
        let entries = entries(runs)
        let bytes = frame(entries)
        #expect(try ReferencePayload.head(bytes.rawBytes) == .init(number: 77, count: runs.count, place: 3))
        #expect(entries.indices.map { ReferencePayload.entry(bytes.rawBytes, at: $0) } == entries)
    }

    @Test func theLastPagesOfTheLargestVMFit() throws {
        let digest = Digest.of([UInt8]().rawBytes)
        let bytes = frame([Entry(page: .max - 15, at: .max, pages: 16, digest: digest)])
        #expect(try ReferencePayload.head(bytes.rawBytes).count == 1)
    }

    @Test(arguments: [[0], [17], [255], [1, 0], [16, 17], [16, 16, 16, 16, 1], Array(repeating: 1, count: 63) + [2]])
    func runsOfOtherLengthsAreRefused(runs: [Int]) {
        let bytes = frame(entries(runs))
        #expect {
            try ReferencePayload.head(bytes.rawBytes)
        } throws: {
            if case FrameError.badPayload(.reference, _) = $0 { true } else { false }
        }
    }

    /// Every second entry that begins before the first one ends, or before it.
    @Test(arguments: 0..<14) func pagesThatComeTwiceAreRefused(second: Int) throws {
        let digest = Digest.of([UInt8]().rawBytes)
        func head(_ page: Int) throws -> ReferencePayload.Head {
            try ReferencePayload.head(
                frame([
                    Entry(page: 4, at: 9, pages: 10, digest: digest),
                    Entry(page: PageNumber(page), at: 100, pages: 2, digest: digest),
                ]).rawBytes)
        }
        #expect(throws: FrameError.badPayload(.reference, "page \(second) behind 14")) { try head(second) }
        #expect(try head(14).count == 2)
    }

    @Test func otherLengthsAreRefused() {
        let bytes = frame(entries([1, 2]))
        for length in [0, 7, 8, 9, 48, 49, 89] {
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
