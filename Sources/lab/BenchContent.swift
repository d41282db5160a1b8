import ApusContent
import ApusLab
import ApusMemory
import ApusSystem
import ArgumentParser
import Foundation

struct BenchContent: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "content",
        abstract: "Indexing a disk image, finding pages in it, storing memory and reading it back.",
        discussion: """
            The image is real data, no two blocks alike. CPU time is that of the one thread that does the work. Writes \
            content.md into --output.
            """)

    @Option(help: "MiB of the image and of the memory.") var size = 2048
    @Option(help: "Where both lie while they are measured: two and a half times their size.")
    var folder = NSTemporaryDirectory()
    @Option(help: "Where the results go.") var output = ".build/bench-content"

    private var blocks: Int { size * MadeContent.blocksPerMiB }

    func run() throws {
        let place = folder + "/apus-bench-content"
        try FileManager.default.createDirectory(atPath: place, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: place) }
        let key = ContentKey(secret: Array(repeating: 1, count: ContentKey.secretBytes), domain: "bench")
        var record = Record()
        try names(key, &record)
        try disk(key, place, &record)
        try snapshot(key, place, &record)
        try FileManager.default.createDirectory(atPath: output, withIntermediateDirectories: true)
        let text =
            "`./dev bench content --size \(size)`:\n\n\(record.table.markdown)\n\n"
            + record.lines.joined(separator: "\n")
        try Data((text + "\n").utf8).write(to: URL(fileURLWithPath: "\(output)/content.md"))
        print(record.table.plain)
        for line in record.lines { print(line) }
    }

    /// Time on the wall and on the CPU; on a machine that does other things only the second says much.
    private struct Stopwatch {
        private let began = Instant.now()
        private let cpuBegan = Instant.threadCPUNs()
        var ms: Double { Instant.now().ms(since: began) }
        var cpuNs: Double { Double(Instant.threadCPUNs() - cpuBegan) }
    }

    private struct Record {
        var table = Table(["", "pages", "CPU, ns a page", "MB per CPU s", "CPU s", "wall s"])
        var lines: [String] = []

        /// - Parameter withoutNs: CPU time that only the measuring took.
        mutating func add(_ what: String, _ pages: Int, _ watch: Stopwatch, withoutNs: Double = 0) {
            add(what, pages, cpuNs: watch.cpuNs - withoutNs, wallMs: watch.ms)
        }

        /// - Parameter wallMs: nil: others' work was in it.
        mutating func add(_ what: String, _ pages: Int, cpuNs: Double, wallMs: Double?) {
            let perPage = cpuNs / Double(pages)
            table.rows.append([
                what, "\(pages)", "\(Int(perPage))", "\(Int(4096e3 / perPage))", brief(cpuNs / 1e9),
                wallMs.map { brief($0 / 1000) } ?? "",
            ])
        }
    }

    private func names(_ key: ContentKey, _ record: inout Record) throws {
        var page = PageBuffer(byteCount: Limits.pageBytes)
        MadeContent.fill(&page, 1)
        var mixed: UInt64 = 0
        var began = Stopwatch()
        for _ in 0..<100_000 { mixed ^= key.hint(of: page.bytes) }
        record.add("hint", 100_000, began)
        began = Stopwatch()
        for _ in 0..<100_000 { mixed ^= key.digest(of: page.bytes).words[0] }
        record.add(mixed == 1 ? "digest." : "digest", 100_000, began)
    }

    private func disk(_ key: ContentKey, _ place: String, _ record: inout Record) throws {
        var page = PageBuffer(byteCount: Limits.pageBytes)
        var hints: [UInt64] = []
        let image = try MadeContent.write(blocks: blocks, to: place + "/disk") { hints.append(key.hint(of: $0.bytes)) }
        let order = IndexOrder(image: place + "/disk", sidecar: place + "/index", key: key)
        var began = Stopwatch()
        _ = try BlockIndex.open(order)
        record.add("index, image in the page cache", blocks, began)
        _ = posix_fadvise(image.number, 0, 0, POSIX_FADV_DONTNEED)
        try FileManager.default.removeItem(atPath: place + "/index")
        began = Stopwatch()
        _ = try BlockIndex.open(order)
        record.add("index, image on the disk", blocks, began)
        began = Stopwatch()
        let loaded = try BlockIndex.open(order, mayBeStale: true)
        record.add("index loaded from its sidecar", blocks, began)
        guard let index = loaded?.index else { return }
        let gib = Double(size) / 1024
        let sidecarBytes = try Descriptor.open(order.sidecar, .read).byteCount()
        record.lines.append(
            "Index of \(size) MiB: \(brief(Double(index.tableBytes) / 1e6 / gib)) MB of memory and "
                + "\(brief(Double(sidecarBytes) / 1e6 / gib)) MB of sidecar for each GiB of data.")
        MadeContent.fill(&page, blocks)
        try image.write(page.bytes, at: 0)
        began = Stopwatch()
        _ = try BlockIndex.open(order)
        record.add("index refreshed, one block has changed", blocks, began)
        MadeContent.fill(&page, 0)
        try image.write(page.bytes, at: 0)
        hints.shuffle()
        began = Stopwatch()
        var found = 0
        for hint in hints where index.block(of: hint) != nil { found += 1 }
        record.add("look-up of a page that is there", blocks, began)
        began = Stopwatch()
        for hint in hints where index.block(of: ~hint &* 3) != nil { found += 1 }
        record.add("look-up of one that is not", blocks, began)
        if found != blocks {
            record.lines.append("Found \(found) of \(blocks) pages that are there, and as many that are not.")
        }
        try proving(key, place, "from the page cache", &record)
        _ = posix_fadvise(image.number, 0, 0, POSIX_FADV_DONTNEED)
        try proving(key, place, "from the disk", &record)
    }

    private func proving(_ key: ContentKey, _ place: String, _ what: String, _ record: inout Record) throws {
        var reader = ImageReader(try ImageReader.openImage(place + "/disk"), key)
        var page = PageBuffer(byteCount: Limits.pageBytes)
        var pages = PageBuffer(byteCount: Limits.batchPages * Limits.pageBytes)
        var spentNs = 0.0
        var proved = 0
        for batch in 0..<blocks / 64 {
            let runs = (0..<64).map { slot in
                let block = batch * 64 + slot
                MadeContent.fill(&page, block)
                return ContentRun(at: UInt32(block), pages: 1, digest: key.digest(of: page.bytes))
            }
            let began = Stopwatch()
            proved += reader.prove(runs.span, into: &pages).nonzeroBitCount
            spentNs += began.cpuNs
        }
        record.add("block read and proved \(what)", proved, cpuNs: spentNs, wallMs: nil)
    }

    private func snapshot(_ key: ContentKey, _ place: String, _ record: inout Record) throws {
        var page = PageBuffer(byteCount: Limits.pageBytes)
        var began = Stopwatch()
        for number in 0..<blocks { MadeContent.fill(&page, number) }
        let fillNs = began.cpuNs
        var store = try SnapshotStore.open(path: place + "/store", bytesMax: 1 << 40)
        for what in ["new pages stored", "pages stored that are there"] {
            began = Stopwatch()
            try store.begin(vm: what, key, pageCount: PageNumber(blocks))
            for number in 0..<blocks {
                MadeContent.fill(&page, number)
                try store.add(PageNumber(number), page.bytes)
            }
            try store.finish()
            record.add(what, blocks, began, withoutNs: fillNs)
            record.lines.append("The store takes \(store.byteCount >> 20) MiB after \(what).")
        }
        guard let snapshot = try store.snapshot(of: "new pages stored", key),
            var reader = SnapshotReader(snapshot, key)
        else { return }
        var digests: [Digest] = []
        for number in 0..<blocks {
            MadeContent.fill(&page, number)
            digests.append(key.digest(of: page.bytes))
        }
        began = Stopwatch()
        var proved = 0
        for number in 0..<blocks
        where reader.prove(ContentRun(at: UInt32(number), pages: 1, digest: digests[number]), into: &page, at: 0) {
            proved += 1
        }
        record.add("page read from the store and proved", proved, began)
        began = Stopwatch()
        store = try Self.reopen(store, place)
        record.add("store opened", store.pages, began)
    }

    private static func reopen(_ store: consuming SnapshotStore, _ place: String) throws -> SnapshotStore {
        _ = consume store
        return try SnapshotStore.open(path: place + "/store", bytesMax: 1 << 40)
    }
}
