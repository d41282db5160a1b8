import ApusCodec
import ApusMemory
import ApusSystem
import ArgumentParser

struct BenchLines: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "lines",
        abstract: "A page sent again: its changed lines, found by hashes, beside XBZRLE with a cache of equal memory.",
        discussion: """
            One thread, no link. A hot set is sent once, then again and again; each time one word changes in each of so \
            many 128-byte lines of every page. Bytes are those of the frames, not squeezed; a whole page is 4104.
            """)

    @Option(help: "MiB of guest memory. Hashes and cache get a sixteenth of it.") var ram = 256
    @Option(help: "Times the hot set is sent again.") var rounds = 3

    private var memoryBytes: Int { (ram << 20) / 16 }

    func run() throws {
        print("hash of a page, ns:", terminator: "")
        for lineBytes in [128, 256, 512, 1024] {
            print("  \(fixed(hashNs(lineBytes), 0)) (\(lineBytes) B)", terminator: "")
        }
        print("\n")
        for (name, pages) in [("half the cache", memoryBytes / 8192), ("eight times the cache", memoryBytes / 512)] {
            print("hot set: \(name), \(pages / 256) MiB")
            print("lines changed      128 B: bytes  ns/page      256 B: bytes  ns/page      xbzrle: bytes  ns/page")
            for changed in [1, 2, 4, 8, 16, 24, 32] {
                let rows = [
                    measure(pages, changed, LineSender(lineBytes: 128, tableBytesMax: memoryBytes)),
                    measure(pages, changed, LineSender(lineBytes: 256, tableBytesMax: memoryBytes)),
                    measure(pages, changed, XbzrleSender(cacheBytes: memoryBytes)),
                ]
                print(
                    pad("\(changed)", -13),
                    rows.map { pad(fixed($0.bytes, 0), -17) + pad(fixed($0.ns, 0), -9) }.joined(separator: "   "))
            }
            print("")
        }
    }

    private func hashNs(_ lineBytes: Int) -> Double {
        let hasher = LineHasher(lineBytes: lineBytes)
        var hashes = GrowingMemory()
        _ = hashes.grow(toHold: 512)
        let pages = HotSet(pages: 64)
        let count = 100_000
        let start = Instant.threadCPUNs()
        for index in 0..<count { _ = hasher.renew(&hashes, at: 0, with: pages.page(index % 64)) }
        return Double(Instant.threadCPUNs() - start) / Double(count)
    }

    /// Bytes and CPU time per page sent again.
    private func measure<Sender: PageSender & ~Copyable>(
        _ pages: Int, _ changed: Int, _ sender: consuming Sender
    ) -> (bytes: Double, ns: Double) {
        var hot = HotSet(pages: pages)
        var (bytes, ns) = (0, UInt64(0))
        for round in 0...rounds {
            sender.beginRound()
            if round > 0 { hot.change(lines: changed) }
            let start = Instant.threadCPUNs()
            for page in 0..<pages {
                let sent = sender.send(PageNumber(page), hot.page(page))
                if round > 0 { bytes += sent }
            }
            let rest = sender.finish()
            if round > 0 {
                bytes += rest
                ns += Instant.threadCPUNs() - start
            }
        }
        let sends = Double(pages * rounds)
        return (Double(bytes) / sends, Double(ns) / sends)
    }
}

/// A way to send pages again.
private protocol PageSender: ~Copyable {
    mutating func beginRound()
    /// Bytes on the link.
    mutating func send(_ page: PageNumber, _ bytes: RawSpan) -> Int
    /// The same for what was gathered.
    mutating func finish() -> Int
}

extension XbzrleSender: PageSender {
    mutating func finish() -> Int { 0 }
}

/// A lane's encoder as it is, without a link.
private struct LineSender: ~Copyable, PageSender {
    private var encoder: LaneEncoder
    private var batch = Batch()

    init(lineBytes: Int, tableBytesMax: Int) {
        encoder = LaneEncoder(
            LaneShare(lane: 0, lanes: 1), .init(squeezes: false, lineBytes: lineBytes, tableBytesMax: tableBytesMax),
            cpuNs: Instant.threadCPUNs)
        var all = PageRanges()
        all.append(0..<PageNumber.max)
        encoder.mayPatch(all)
    }

    mutating func beginRound() {}

    mutating func send(_ page: PageNumber, _ bytes: RawSpan) -> Int {
        batch.add(page, bytes, startsBlock: false)
        return batch.hasNoRoomForData() ? sendBatch() : 0
    }

    mutating func finish() -> Int {
        let bytes = sendBatch() + (encoder.flush(linkBytesPerNs: 0.125)?.byteCount ?? 0)
        _ = encoder.confirm(upTo: encoder.flight.sent)
        return bytes
    }

    private mutating func sendBatch() -> Int {
        var bytes = 0
        while let frame = encoder.next(&batch, linkBytesPerNs: 0.125, nowNs: 0) {
            switch frame {
            case .pages(let result): bytes += result.headBytes + result.rawBytes
            case .updates(let result): bytes += result.byteCount
            }
        }
        batch.reset()
        _ = encoder.confirm(upTo: encoder.flight.sent)
        return bytes
    }
}

/// Pages that do not compress, of which a few words change.
private struct HotSet: ~Copyable {
    private var memory: PageBuffer
    private let pages: Int
    private var state: UInt64 = 88_172_645_463_325_252

    init(pages: Int) {
        self.pages = pages
        memory = PageBuffer(byteCount: pages * 4096)
        for offset in stride(from: 0, to: pages * 4096, by: 8) { memory.store(next(), at: offset) }
    }

    @_lifetime(borrow self)
    func page(_ number: Int) -> RawSpan { memory.bytes.extracting(number * 4096..<(number + 1) * 4096) }

    /// One word in each of so many lines of every page, spread over the page.
    mutating func change(lines: Int) {
        for page in 0..<pages {
            for line in 0..<lines {
                let word = Int(next() % 16)
                memory.store(next(), at: page * 4096 + line * 32 / lines * 128 + word * 8)
            }
        }
    }

    private mutating func next() -> UInt64 {
        state ^= state << 13
        state ^= state >> 7
        state ^= state << 17
        return state
    }
}
