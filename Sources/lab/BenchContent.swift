import ApusContent
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

    private func tell(_ what: String, _ pages: Int, since began: Instant, _ more: String = "") {
        let ms = Instant.now().ms(since: began)
        let rate = Double(pages) * 4.096 / ms
        print("\(what): \(Int(rate)) MB/s, \(Int(ms * 1e6 / Double(pages))) ns a page\(more)")
    }

    private func names(_ key: ContentKey) throws {
        var page = PageBuffer(byteCount: Limits.pageBytes)
        Self.fill(&page, 1)
        var mixed: UInt64 = 0
        var began = Instant.now()
        for _ in 0..<100_000 { mixed ^= key.hint(of: page.bytes) }
        tell("hint", 100_000, since: began)
        began = Instant.now()
        for _ in 0..<100_000 { mixed ^= key.digest(of: page.bytes).words[0] }
        tell("digest", 100_000, since: began, mixed == 1 ? "." : "")
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
        var began = Instant.now()
        _ = try BlockIndex.open(order)
        tell("index, image in the page cache", blocks, since: began)
        _ = posix_fadvise(image.number, 0, 0, POSIX_FADV_DONTNEED)
        try FileManager.default.removeItem(atPath: place + "/index")
        began = Instant.now()
        let cpuBegan = Instant.threadCPUNs()
        _ = try BlockIndex.open(order)
        tell(
            "index, image on the disk", blocks, since: began,
            ", \((Instant.threadCPUNs() - cpuBegan) / UInt64(blocks)) of CPU")
        began = Instant.now()
        let loaded = try BlockIndex.open(order, mayBeStale: true)
        tell("index loaded from its sidecar", blocks, since: began)
        guard let index = loaded?.index else { return }
        hints.shuffle()
        began = Instant.now()
        var found = 0
        for hint in hints where index.block(of: hint) != nil { found += 1 }
        tell("look-up of \(found) pages that are there", blocks, since: began)
        began = Instant.now()
        for hint in hints where index.block(of: ~hint &* 3) != nil { found += 1 }
        tell("look-up of pages that are not", blocks, since: began, found > blocks ? ", some invented" : "")
        try proving(key, place, "from the page cache")
        _ = posix_fadvise(image.number, 0, 0, POSIX_FADV_DONTNEED)
        try proving(key, place, "from the disk")
    }

    private func proving(_ key: ContentKey, _ place: String, _ what: String) throws {
        var reader = ImageReader(try ImageReader.openImage(place + "/disk"), key)
        var page = PageBuffer(byteCount: Limits.pageBytes)
        var pages = PageBuffer(byteCount: Limits.batchPages * Limits.pageBytes)
        var spentMs = 0.0
        var proved = 0
        for batch in 0..<blocks / 64 {
            let references = (0..<64).map { slot in
                let block = batch * 64 + slot
                Self.fill(&page, block)
                return BlockReference(page: UInt32(block), block: UInt32(block), digest: key.digest(of: page.bytes))
            }
            let began = Instant.now()
            proved += reader.prove(references.span, into: &pages).nonzeroBitCount
            spentMs += Instant.now().ms(since: began)
        }
        print("\(proved) blocks read and proved \(what): \(Int(Double(proved) * 4.096 / spentMs)) MB/s")
    }

    private func snapshot(_ key: ContentKey, _ place: String) throws {
        var page = PageBuffer(byteCount: Limits.pageBytes)
        var began = Instant.now()
        for number in 0..<blocks { Self.fill(&page, number) }
        let fillMs = Instant.now().ms(since: began)
        var store = try SnapshotStore.open(path: place + "/store", bytesMax: 1 << 40)
        for what in ["new pages stored", "pages stored that are there"] {
            began = Instant.now()
            try store.begin(vm: what, key, pageCount: PageNumber(blocks))
            for number in 0..<blocks {
                Self.fill(&page, number)
                try store.add(PageNumber(number), page.bytes)
            }
            try store.finish()
            tell(what, blocks, since: began.adding(ms: fillMs), ", \(store.byteCount >> 20) MiB on disk")
        }
        guard let snapshot = try store.snapshot(of: "new pages stored", key),
            var reader = SnapshotReader(snapshot, key)
        else { return }
        var digests: [Digest] = []
        for number in 0..<blocks {
            Self.fill(&page, number)
            digests.append(key.digest(of: page.bytes))
        }
        began = Instant.now()
        var proved = 0
        for number in 0..<blocks
        where reader.prove(PageNumber(number), digests[number], into: &page, at: 0) { proved += 1 }
        tell("\(proved) pages read from the store and proved", blocks, since: began)
        began = Instant.now()
        store = try Self.reopen(store, place)
        print("store opened: \(Int(Instant.now().ms(since: began))) ms for \(store.pages) pages")
    }

    private static func reopen(_ store: consuming SnapshotStore, _ place: String) throws -> SnapshotStore {
        _ = consume store
        return try SnapshotStore.open(path: place + "/store", bytesMax: 1 << 40)
    }
}
