import ApusMemory
import ApusSystem
import ApusWire
import Testing

/// Frames about pages that are missing, from a peer that may be hostile.
@Suite struct PullPayloadTests {
    private func take(_ pieces: [[UInt8]], pageCount: PageNumber) throws -> (PageSet, isLast: [Bool]) {
        var set = PageSet(pageCount: pageCount)
        var isLast: [Bool] = []
        for piece in pieces { isLast.append(try ResidencePayload.take(piece.rawBytes, into: &set)) }
        return (set, isLast)
    }

    @Test(arguments: [1, 64, 1000, 3_000_000] as [PageNumber]) func aSetTravelsInPieces(pageCount: PageNumber) throws {
        var set = PageSet(pageCount: pageCount)
        for page in stride(from: 0, to: pageCount, by: 777) { set.insert(first: page, count: 1) }
        set.insert(first: pageCount - 1, count: 1)
        let pieces = ResidencePayload.pieces(set)
        #expect(pieces.allSatisfy { $0.count <= ResidencePayload.bytesMax })
        #expect(pieces.count == (Int(pageCount) + 524_287) / 524_288)
        let (copy, isLast) = try take(pieces, pageCount: pageCount)
        #expect(copy == set)
        #expect(isLast == pieces.indices.map { $0 == pieces.count - 1 })
    }

    /// The guest stands still while they travel.
    @Test func fewPagesAreFewBytes() throws {
        var set = PageSet(pageCount: 3_000_000)
        for page in [70, 71, 9000, 2_999_999] as [PageNumber] { set.insert(first: page, count: 1) }
        let pieces = ResidencePayload.pieces(set)
        #expect(pieces.map(\.count) == [16, 16, 16])
        #expect(try take(pieces, pageCount: 3_000_000).0 == set)
    }

    @Test func anEmptySetIsOnePiece() throws {
        let pieces = ResidencePayload.pieces(PageSet(pageCount: 3_000_000))
        #expect(pieces.map(\.count) == [ResidencePayload.headBytes])
        #expect(try take(pieces, pageCount: 3_000_000).isLast == [true])
    }

    @Test(arguments: [
        [UInt8](repeating: 0, count: 7), [UInt8](repeating: 0, count: 12),
        // Behind the VM's last word; a flag that is none; a page behind the last.
        [2, 0, 0, 0, 0, 0, 0, 0] + [UInt8](repeating: 0, count: 8),
        [0, 0, 0, 0, 2, 0, 0, 0], [0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0],
        [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80],
    ])
    func nonsenseIsRefused(bytes: [UInt8]) {
        var set = PageSet(pageCount: 100)
        #expect(throws: FrameError.self) { try ResidencePayload.take(bytes.rawBytes, into: &set) }
    }

    @Test func wantedRunsAreOfTheVM() throws {
        let layout = try Layout([("a", 100 * 4096), ("b", 10 * 4096)])
        var buffer = PageBuffer(byteCount: WantedPayload.bytesMax)
        func refusal(_ first: PageNumber, _ count: Int) -> FrameError? {
            WantedPayload.store((first, count), at: 1, in: &buffer)
            do throws(FrameError) {
                let run = try WantedPayload.run(buffer.bytes, at: 1, of: layout)
                #expect(run == (first, count))
                return nil
            } catch { return error }
        }
        #expect(refusal(0, 64) == nil)
        #expect(refusal(109, 1) == nil)
        #expect(refusal(0, 65) != nil)
        #expect(refusal(0, 0) != nil)
        #expect(refusal(99, 2) != nil, "across blocks")
        #expect(refusal(109, 2) != nil)
        #expect(refusal(.max, 2) != nil)
        for length in [0, 7, 12, WantedPayload.bytesMax + 8] {
            let bytes = [UInt8](repeating: 0, count: length)
            #expect(throws: FrameError.self) { try WantedPayload.runCount(bytes.rawBytes) }
        }
    }
}
