import ApusContent
import ApusLab
import ApusMemory
import ApusSystem
import ArgumentParser
import Foundation

struct BenchContent: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "content",
        abstract: "Indexing a disk image, finding pages in it, storing memory and reading it back.")

    @Option(help: "MiB of the image and of the memory.") var size = 2048
    @Option(help: "Where both lie while they are measured.") var folder = NSTemporaryDirectory()

    private var blocks: Int { size * 256 }

    func run() throws {
        let place = folder + "/apus-bench-content"
        try FileManager.default.createDirectory(atPath: place, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: place) }
        let key = ContentKey(secret: Array(repeating: 1, count: ContentKey.secretBytes), domain: "bench")
        try names(key)
        try disk(key, place)
        try snapshot(key, place)
    }

    /// Half random, half letters that squeeze to a fifth: other pages have other bytes.
    private static func fill(_ page: inout PageBuffer, _ number: Int) {
        var state = UInt64(number + 1) &* 0x9E37_79B9_7F4A_7C15
        for at in stride(from: 0, to: Limits.pageBytes, by: 8) {
            state ^= state << 13
            state ^= state >> 7
            state ^= state << 17
            page.store(
                at < Limits.pageBytes / 2 ? state : state & 0x0303_0000_0003_0000 | 0x6161_6161_6161_6161, at: at)
        }
    }

    /// Time on the wall and on the CPU; on a machine that does other things only the second says much.
    private struct Stopwatch {
        private let began = Instant.now()
        private let cpuBegan = Instant.threadCPUNs()
        var ms: Double { Instant.now().ms(since: began) }
        var cpuNs: Double { Double(Instant.threadCPUNs() - cpuBegan) }
    }

    /// - Parameter withoutNs: CPU time that only the measuring took.
    private func tell(_ what: String, _ pages: Int, _ watch: Stopwatch, withoutNs: Double = 0, _ more: String = "") {
        let (ms, cpuNs) = (watch.ms, (watch.cpuNs - withoutNs) / Double(pages))
        print("\(what): \(Int(cpuNs)) ns of CPU a page (\(Int(4096e3 / cpuNs)) MB/s), \(Int(ms)) ms on the wall\(more)")
    }

    private func names(_ key: ContentKey) throws {
        var page = PageBuffer(byteCount: Limits.pageBytes)
        Self.fill(&page, 1)
        var mixed: UInt64 = 0
        var began = Stopwatch()
        for _ in 0..<100_000 { mixed ^= key.hint(of: page.bytes) }
        tell("hint", 100_000, began)
        began = Stopwatch()
        for _ in 0..<100_000 { mixed ^= key.digest(of: page.bytes).words[0] }
        tell("digest", 100_000, began, mixed == 1 ? "." : "")
    }

    private func disk(_ key: ContentKey, _ place: String) throws {
        var page = PageBuffer(byteCount: Limits.pageBytes)
        let image = try Descriptor.create(place + "/disk")
        var hints: [UInt64] = []
        for block in 0..<blocks {
            Self.fill(&page, block)
            hints.append(key.hint(of: page.bytes))
            try image.write(page.bytes, at: UInt64(block * Limits.pageBytes))
        }
        try image.sync()
        let order = IndexOrder(image: place + "/disk", sidecar: place + "/index", key: key)
        var began = Stopwatch()
        _ = try BlockIndex.open(order)
        tell("index, image in the page cache", blocks, began)
        _ = posix_fadvise(image.number, 0, 0, POSIX_FADV_DONTNEED)
        try FileManager.default.removeItem(atPath: place + "/index")
        began = Stopwatch()
        _ = try BlockIndex.open(order)
        tell("index, image on the disk", blocks, began)
        began = Stopwatch()
        let loaded = try BlockIndex.open(order, mayBeStale: true)
        tell("index loaded from its sidecar", blocks, began)
        guard let index = loaded?.index else { return }
        let gib = Double(size) / 1024
        let sidecarBytes = try Descriptor.open(order.sidecar, .read).byteCount()
        print(
            "index of \(size) MiB: \(brief(Double(index.tableBytes) / 1e6 / gib)) MB of memory and "
                + "\(brief(Double(sidecarBytes) / 1e6 / gib)) MB of sidecar for each GiB of data")
        Self.fill(&page, blocks)
        try image.write(page.bytes, at: 0)
        began = Stopwatch()
        _ = try BlockIndex.open(order)
        tell("index refreshed, one block has changed", blocks, began)
        Self.fill(&page, 0)
        try image.write(page.bytes, at: 0)
        hints.shuffle()
        began = Stopwatch()
        var found = 0
        for hint in hints where index.block(of: hint) != nil { found += 1 }
        tell("look-up of \(found) pages that are there", blocks, began)
        began = Stopwatch()
        for hint in hints where index.block(of: ~hint &* 3) != nil { found += 1 }
        tell("look-up of pages that are not", blocks, began, found > blocks ? ", some invented" : "")
        try proving(key, place, "from the page cache")
        _ = posix_fadvise(image.number, 0, 0, POSIX_FADV_DONTNEED)
        try proving(key, place, "from the disk")
    }

    private func proving(_ key: ContentKey, _ place: String, _ what: String) throws {
        var reader = ImageReader(try ImageReader.openImage(place + "/disk"), key)
        var page = PageBuffer(byteCount: Limits.pageBytes)
        var pages = PageBuffer(byteCount: Limits.batchPages * Limits.pageBytes)
        var spentNs = 0.0
        var proved = 0
        for batch in 0..<blocks / 64 {
            let references = (0..<64).map { slot in
                let block = batch * 64 + slot
                Self.fill(&page, block)
                return BlockReference(page: UInt32(block), block: UInt32(block), digest: key.digest(of: page.bytes))
            }
            let began = Stopwatch()
            proved += reader.prove(references.span, into: &pages).nonzeroBitCount
            spentNs += began.cpuNs
        }
        print("\(proved) blocks read and proved \(what): \(Int(spentNs / Double(proved))) ns of CPU a page")
    }

    private func snapshot(_ key: ContentKey, _ place: String) throws {
        var page = PageBuffer(byteCount: Limits.pageBytes)
        var began = Stopwatch()
        for number in 0..<blocks { Self.fill(&page, number) }
        let fillNs = began.cpuNs
        var store = try SnapshotStore.open(path: place + "/store", bytesMax: 1 << 40)
        for what in ["new pages stored", "pages stored that are there"] {
            began = Stopwatch()
            try store.begin(vm: what, key, pageCount: PageNumber(blocks))
            for number in 0..<blocks {
                Self.fill(&page, number)
                try store.add(PageNumber(number), page.bytes)
            }
            try store.finish()
            tell(what, blocks, began, withoutNs: fillNs, ", \(store.byteCount >> 20) MiB on disk")
        }
        guard let snapshot = try store.snapshot(of: "new pages stored", key),
            var reader = SnapshotReader(snapshot, key)
        else { return }
        var digests: [Digest] = []
        for number in 0..<blocks {
            Self.fill(&page, number)
            digests.append(key.digest(of: page.bytes))
        }
        began = Stopwatch()
        var proved = 0
        for number in 0..<blocks
        where reader.prove(PageNumber(number), digests[number], into: &page, at: 0) { proved += 1 }
        tell("\(proved) pages read from the store and proved", blocks, began)
        began = Stopwatch()
        store = try Self.reopen(store, place)
        print("store opened: \(Int(began.ms)) ms for \(store.pages) pages")
    }

    private static func reopen(_ store: consuming SnapshotStore, _ place: String) throws -> SnapshotStore {
        _ = consume store
        return try SnapshotStore.open(path: place + "/store", bytesMax: 1 << 40)
    }
}
