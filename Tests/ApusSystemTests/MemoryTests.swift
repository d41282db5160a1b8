import ApusSystem
import Testing

@Suite struct GrowingMemoryTests {
    @Test func newBytesAreZeroAndOldOnesStay() {
        var memory = GrowingMemory()
        #expect(memory.bytes.byteCount == 0)
        var size = 1
        var written: [Int] = []
        while size < 64 << 20 {
            let grown = memory.grow(toHold: size)
            #expect(grown)
            memory.fill(7, at: size - 1, count: 1)
            written.append(size - 1)
            size *= 3
        }
        let last = written.last ?? 0
        for offset in written { #expect(memory.bytes.byte(at: offset) == 7) }
        let between = (0...last).count { memory.bytes.byte(at: $0) != 0 }
        #expect(between == written.count)
    }

    /// More than any machine has address space for: refused, and what there was is still there.
    @Test func aRefusalLosesNothing() {
        var memory = GrowingMemory()
        let small = memory.grow(toHold: 10)
        memory.fill(9, at: 3, count: 1)
        let huge = memory.grow(toHold: 1 << 52)
        #expect(small && !huge)
        #expect(memory.bytes.byte(at: 3) == 9)
    }
}

@Suite struct LineHasherTests {
    @Test(arguments: [128, 256, 512, 1024, 2048]) func everyChangedByteIsSeenInItsLine(lineBytes: Int) {
        let hasher = LineHasher(lineBytes: lineBytes)
        var hashes = GrowingMemory()
        _ = hashes.grow(toHold: 512)
        var page = PageBuffer(byteCount: 4096)
        for word in 0..<512 { page.store(UInt64(word) &* 0x9E37_79B9_7F4A_7C15, at: word * 8) }
        let all = hasher.renew(&hashes, at: 256, with: page.bytes)
        #expect(all.nonzeroBitCount == 4096 / lineBytes)
        var wrong = 0
        for byte in 0..<4096 {
            let flipped = ~page.bytes.byte(at: byte)
            var bytes = page.mutableBytes
            bytes.storeBytes(of: flipped, toByteOffset: byte, as: UInt8.self)
            let mask = hasher.renew(&hashes, at: 256, with: page.bytes)
            if mask != 1 << UInt32(byte / lineBytes) { wrong += 1 }
        }
        #expect(wrong == 0)
        let same = hasher.renew(&hashes, at: 256, with: page.bytes)
        #expect(same == 0)
    }

    /// Two hashers share no hash, or the secret is none.
    @Test func everyHasherHasItsOwnSecret() {
        var hashes = GrowingMemory()
        _ = hashes.grow(toHold: 256)
        var page = PageBuffer(byteCount: 4096)
        for word in 0..<512 { page.store(UInt64(word), at: word * 8) }
        _ = LineHasher(lineBytes: 128).renew(&hashes, at: 0, with: page.bytes)
        let changed = LineHasher(lineBytes: 128).renew(&hashes, at: 0, with: page.bytes)
        #expect(changed == .max)
    }
}

@Suite struct PatchTests {
    private static let masks: [UInt32] = [1, 0x8000_0000, .max, 0x5555_5555, 0xaaaa_aaaa, 0x00ff_0f01, 0xf000_000f]

    /// The named lines of a page change, and nothing else around them; through a mapping and through the kernel.
    @Test(arguments: masks) func onlyTheNamedLinesChange(mask: UInt32) throws {
        let file = try Descriptor.memoryFile(byteCount: 3 * 4096)
        let window = try GuestWindow(file, fileOffset: 0, byteCount: 3 * 4096)
        var memory = PageBuffer(byteCount: 3 * 4096)
        let old = [UInt8](repeating: 0x11, count: 3 * 4096)
        window.install(old.rawBytes, at: 0)
        memory.write(old.rawBytes, at: 0)
        let lines: [UInt8] = (0..<mask.nonzeroBitCount * 128).map { UInt8(truncatingIfNeeded: $0 / 128 + 0x40) }
        window.patch(lines.rawBytes, at: 4096, mask, lineBytes: 128)
        try memory.asProcessWindow().patch(lines.rawBytes, at: 4096, mask, lineBytes: 128)

        var expected = old
        var next = 0
        for line in 0..<32 where mask & (1 << UInt32(line)) != 0 {
            for index in 0..<128 { expected[4096 + line * 128 + index] = lines[next * 128 + index] }
            next += 1
        }
        var seen = PageBuffer(byteCount: 3 * 4096)
        window.copyOut(at: 0, byteCount: 3 * 4096, to: &seen, bufferOffset: 0)
        #expect(seen.bytes.bytesCopied == expected)
        #expect(memory.bytes.bytesCopied == expected)
    }
}

@Suite struct BoundedQueueTests {
    @Test func waitingForAnElementEnds() {
        let queue = BoundedQueue<Int>(capacity: 2)
        #expect(!queue.isReady(withinMs: 5))
        _ = queue.send(1)
        #expect(queue.isReady(withinMs: 0))
        _ = queue.receive()
        queue.close()
        #expect(queue.isReady(withinMs: 60_000))
    }

    @Test func anElementEndsTheWait() throws {
        let queue = BoundedQueue<Int>(capacity: 2)
        let sender = try WorkerThread("test-send") {
            pause(ms: 20)
            _ = queue.send(1)
        }
        #expect(queue.isReady(withinMs: 60_000))
        #expect(sender.join(ms: 10_000))
    }
}

@Suite struct FileSharersTests {
    @Test func whoMapsAFileIsFound() throws {
        let file = try Descriptor.memoryFile(byteCount: 8192)
        let identity = try FileIdentity.of(path: "/proc/self/fd/\(file.number)")
        let own = try #require(Int32(ProcFile.link("/proc/self") ?? ""))
        #expect(FileSharers.writer(of: [identity], besides: []) == nil)
        let window = try GuestWindow(file, fileOffset: 4096, byteCount: 4096)
        #expect(FileSharers.writer(of: [identity], besides: [])?.pid == own)
        #expect(FileSharers.writer(of: [identity], besides: [own]) == nil)
        #expect(FileSharers.writer(of: [], besides: []) == nil)
        withExtendedLifetime(window) {}
    }
}
