import ApusCodec
import ApusMemory
import ApusSystem
import Testing

@Suite struct HostileUpdateTests {
    /// A lane that has whole pages 0 to 99 and one of the second block, which cannot be patched.
    private func decode(
        _ bytes: [UInt8], _ image: inout Image, _ share: LaneShare = wholeVM
    ) throws(PayloadError) -> UpdateDecoder.Counts {
        var replica = ReplicaMap(share)
        for page in 0..<PageNumber(100) where share.owns(page) {
            replica.setWhole(first: page, count: 1)
            image.pages[page] = [UInt8](repeating: 0xaa, count: 4096)
        }
        let rom = layout.blocks[1].firstPage
        if share.owns(rom) { replica.setWhole(first: rom, count: 1) }
        var decoder = UpdateDecoder(layout: layout)
        return try decoder.decode(bytes.rawBytes, &replica, into: &image)
    }

    private func refused(_ error: PayloadError, _ bytes: [UInt8], _ share: LaneShare = wholeVM) {
        var image = Image()
        #expect(throws: error) { try decode(bytes, &image, share) }
        #expect(image.pages.values.allSatisfy { $0 == [UInt8](repeating: 0xaa, count: 4096) })
    }

    private func head(
        _ entries: Int, codec: UInt8 = 0, flags: UInt8 = 0, shift: UInt8 = 7, reserved: UInt8 = 0, squeezed: Int = 0
    ) -> [UInt8] {
        [UInt8(entries & 255), UInt8(entries >> 8), codec, flags, shift, reserved, 0, 0]
            + (0..<4).map { UInt8(truncatingIfNeeded: squeezed >> ($0 * 8)) }
    }

    private func entry(_ page: PageNumber, _ mask: UInt32, _ base: UInt8) -> [UInt8] {
        (0..<4).map { UInt8(truncatingIfNeeded: page >> ($0 * 8)) }
            + (0..<4).map { UInt8(truncatingIfNeeded: mask >> ($0 * 8)) } + [base]
    }

    private let line = [UInt8](repeating: 1, count: 128)

    @Test func aSoundUpdateIsApplied() throws {
        var image = Image()
        let counts = try decode(head(1) + entry(3, 0x8000_0001, 1) + line + line, &image)
        #expect(counts.pages == 1 && counts.lines == 2)
        #expect(image.pages[3] == line + [UInt8](repeating: 0xaa, count: 4096 - 256) + line)
    }

    @Test func liesAreNamed() {
        let rom = layout.blocks[1].firstPage
        refused(.short(want: 12, got: 3), [1, 0, 0])
        refused(.tooManyRecords(0), head(0))
        refused(.tooManyRecords(Limits.updatePages + 1), head(Limits.updatePages + 1))
        refused(.unknownCodec(3), head(1, codec: 3))
        refused(.unknownFlags(2), head(1, flags: 2))
        refused(.unknownFlags(5), head(1, reserved: 5))
        refused(.lineBytes(shift: 6), head(1, shift: 6))
        refused(.lineBytes(shift: 12), head(1, shift: 12))
        refused(.lineBytes(shift: 200), head(1, shift: 200))
        refused(.corruptBody(.none), head(1, squeezed: 1) + entry(0, 1, 1))
        refused(.short(want: 21, got: 12), head(1))
        refused(.notAscending(page: 5), head(2) + entry(5, 1, 1) + entry(5, 1, 1) + line + line)
        refused(.outsideMemory(page: UInt64(layout.pageCount) + 1), head(1) + entry(layout.pageCount, 1, 1) + line)
        refused(.outsideMemory(page: 1 << 32), head(1) + entry(.max, 1, 1) + line)
        refused(.wrongLane(page: 64), head(1) + entry(64, 1, 1) + line, LaneShare(lane: 0, lanes: 2))
        refused(.emptyUpdate(page: 5), head(1) + entry(5, 0, 1))
        refused(.outsidePage(page: 5, mask: 0x1_0000), head(1, shift: 8) + entry(5, 0x1_0000, 1) + line + line)
        refused(.notPatchable(page: rom), head(1) + entry(rom, 1, 1) + line)
        refused(.length(want: 21 + 128, got: 21 + 127), head(1) + entry(5, 1, 1) + line.dropLast())
        refused(.length(want: 21 + 128, got: 21 + 129), head(1) + entry(5, 1, 1) + line + [0])
        refused(.length(want: 21 + 9, got: 21 + 128), head(1, codec: 1, squeezed: 9) + entry(5, 1, 1) + line)
        refused(.corruptBody(.lz4), head(1, codec: 1, squeezed: 4) + entry(5, 1, 1) + [255, 255, 255, 255])
        refused(.corruptBody(.zstd), head(1, codec: 2, squeezed: 4) + entry(5, 1, 1) + [1, 2, 3, 4])
    }

    /// An update for a page that was never sent, one that comes twice or too late, and one behind the last number.
    @Test func staleUpdatesAreRefused() {
        refused(.stale(page: 500, base: 1, own: 0), head(1) + entry(500, 1, 1) + line)
        refused(.stale(page: 500, base: 0, own: 0), head(1) + entry(500, 1, 0) + line)
        refused(.stale(page: 5, base: 0, own: 1), head(1) + entry(5, 1, 0) + line)
        refused(.stale(page: 5, base: 2, own: 1), head(1) + entry(5, 1, 2) + line)
        refused(.stale(page: 5, base: 129, own: 1), head(1) + entry(5, 1, 129) + line)
        // The first page is sound, the second is not: nothing is written.
        refused(.stale(page: 6, base: 9, own: 1), head(2) + entry(5, 1, 1) + entry(6, 1, 9) + line + line)
    }

    @Test func aReplayedFrameIsRefused() throws {
        var pair = LanePair()
        var bytes = [UInt8](repeating: 3, count: 4096)
        for _ in 0..<2 {
            bytes[0] ^= 1
            try pair.send([(7, bytes)])
        }
        try pair.fence()
        let replay = pair.frames[1].bytes
        var decoder = UpdateDecoder(layout: layout)
        #expect(throws: PayloadError.stale(page: 7, base: 1, own: 2)) {
            try decoder.decode(replay.rawBytes, &pair.replica, into: &pair.image)
        }
    }

    /// Bytes changed at random never trap, and write nothing when they are refused.
    @Test func mutationsNeverTrap() {
        var random = SeededGenerator(seed: 5)
        for _ in 0..<3000 {
            var bytes = head(3) + entry(3, 5, 1) + entry(4, 1, 1) + entry(90, 0xf000_0000, 1)
            for _ in 0..<7 { bytes += line }
            for _ in 0..<Int.random(in: 1...4, using: &random) {
                bytes[Int(random.next() % 45)] = UInt8(truncatingIfNeeded: random.next())
            }
            if random.next() % 4 == 0 { bytes.removeLast(Int(random.next() % UInt64(bytes.count))) }
            var image = Image()
            do { _ = try decode(bytes, &image) } catch {
                #expect(image.pages.values.allSatisfy { $0 == [UInt8](repeating: 0xaa, count: 4096) })
            }
        }
    }
}
