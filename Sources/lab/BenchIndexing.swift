import ApusContent
import ApusLab
import ApusMemory
import ApusSystem
import ArgumentParser
import Foundation

struct BenchIndexing: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "indexing",
        abstract: "What a guest notices of a disk being indexed, or memory being stored, beside it.",
        discussion: """
            A guest that writes as fast as it can. In each turn it is alone for a while, beside a thread that indexes a disk \
            image as an agent does it, and beside one that stores a memory image so, in another order each time: what \
            disturbs the machine for a minute disturbs all three. Prints the guest's own count of its work, and the median \
            of each turn's loss.
            """)

    @Option(
        help:
            "Image to index; it is only read, and dropped from the page cache before each turn. Without it one is made."
    )
    var image: String?
    @Option(help: "MiB of the image that is made, and of the memory that is stored.") var size = 1024
    @Option(help: "Where both lie while it is measured.") var folder = NSTemporaryDirectory()
    @Option(help: "How often each of the three is measured.") var turns = 40
    @Option(help: "Seconds of each.") var seconds = 1.0
    @Option(help: "MB/s read from the disk at most, as content.indexMBps.") var rate = 50.0
    @Option(help: "The QEMU to run.") var qemu = QemuProgram.installed

    private enum Beside: Int, CaseIterable { case nothing, indexer, storer }

    func run() async throws {
        let command = self
        try await LabCommand.interruptible { try await command.measure() }
    }

    private func measure() async throws {
        var guest = Workload(name: "incompressible", pattern: .incompressible)
        guest.pagesPerS = 10_000_000
        guest.checkShare = 5
        let guestImage = try GuestImage.find()
        let accelerator = await Accelerator.probe(qemu: qemu, image: guestImage)
        let (guestCopy, qemu) = (guest, qemu)
        let place = folder + "/apus-bench-indexing"
        try FileManager.default.createDirectory(atPath: place, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: place) }
        let disk = image ?? place + "/disk"
        if image == nil { _ = try MadeContent.write(blocks: size * MadeContent.blocksPerMiB, to: disk) }
        try await Lab.with { lab in
            let pair = try await HostPair.make(in: lab, rate: nil)
            let peer = ApusPeer(program: ApusPeer.findProgram(), qemu: qemu)
            let agent = try await Agent.start("a", peer, pair.source, lab, port: 4600)
            let console = try await agent.run(
                guestCopy, as: "g", qemu: qemu, image: guestImage, accelerator: accelerator)
            lab.later("console") { await console.close() }
            var work = Beside.allCases.map { _ in [Double]() }
            let spentNs = Beside.allCases.map { _ in Monitor<UInt64>(0) }
            for turn in 0..<turns {
                for step in Beside.allCases.indices {
                    guard let beside = Beside(rawValue: (turn + step) % Beside.allCases.count) else { continue }
                    let ends = Latch()
                    let worker = try start(beside, disk, place, spentNs[beside.rawValue], until: ends)
                    let began = ContinuousClock.now
                    try await Task.sleep(for: .seconds(seconds))
                    let workPerS = console.trace.workPerS(from: began, to: .now)
                    ends.open()
                    while worker?.join(ms: 0) == false { try await Task.sleep(for: .milliseconds(10)) }
                    guard let workPerS else { throw LabError.notEnough(what: "ticks of the guest") }
                    work[beside.rawValue].append(workPerS)
                }
            }
            print(table(work, spentNs.map { $0.read { Double($0) / 1e9 } }).markdown)
        }
    }

    private func table(_ work: [[Double]], _ spentS: [Double]) -> Table {
        var table = Table(["beside", "guest's work/s", "less, %", "standard error", "of a CPU, %"])
        let alone = work[Beside.nothing.rawValue]
        for beside in Beside.allCases {
            var row = ["\(beside)", Spread(work[beside.rawValue])?.text ?? "", "", "", ""]
            let loss = zip(work[beside.rawValue], alone).map { (1 - $0 / $1) * 100 }
            if beside != .nothing, let spread = Spread(loss) {
                row[2...] = [
                    spread.text, brief(Self.standardError(loss)),
                    brief(spentS[beside.rawValue] / seconds / Double(turns) * 100),
                ]
            }
            table.rows.append(row)
        }
        return table
    }

    /// Of the median of values that scatter as noise does.
    private static func standardError(_ values: [Double]) -> Double {
        let count = Double(values.count)
        let mean = values.reduce(0, +) / count
        let variance = values.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / max(count - 1, 1)
        return 1.2533 * (variance / count).squareRoot()
    }

    /// As an agent's: it gives way on CPU and disk. Over and over, until the time is over.
    private func start(
        _ beside: Beside, _ disk: String, _ place: String, _ cpuNs: Monitor<UInt64>, until ends: Latch
    ) throws -> WorkerThread? {
        if beside == .nothing { return nil }
        let file = try Descriptor.open(disk, .read)
        _ = posix_fadvise(file.number, 0, 0, POSIX_FADV_DONTNEED)
        return try WorkerThread("bench-beside", nice: WorkerThread.idle) {
            WorkerThread.giveWayOnDisk()
            while !ends.wait(ms: 0) {
                let place = "\(place)/\(beside)"
                switch beside {
                case .nothing: break
                case .indexer: index(disk, place, until: ends)
                case .storer: try? storeMemory(place, until: ends)
                }
                try? FileManager.default.removeItem(atPath: place)
            }
            let spentNs = Instant.threadCPUNs()
            cpuNs.update { $0 += spentNs }
        }
    }

    private var key: ContentKey {
        ContentKey(secret: Array(repeating: 1, count: ContentKey.secretBytes), domain: "bench")
    }

    private func index(_ disk: String, _ sidecar: String, until ends: Latch) {
        let order = IndexOrder(image: disk, sidecar: sidecar, key: key, bytesPerS: rate * 1e6)
        _ = try? BlockIndex.open(order) { ends.wait(ms: 0) }
    }

    private func storeMemory(_ place: String, until ends: Latch) throws {
        let pages = size * MadeContent.blocksPerMiB
        var page = PageBuffer(byteCount: Limits.pageBytes)
        var store = try SnapshotStore.open(path: place, bytesMax: 1 << 40)
        var idle = IdlePace()
        try store.begin(vm: "bench", key, pageCount: PageNumber(pages))
        for number in 0..<pages {
            MadeContent.fill(&page, number)
            try store.add(PageNumber(number), page.bytes)
            guard number % Limits.batchPages == 0 else { continue }
            if ends.wait(ms: 0) { return store.abandon() }
            idle.giveWay()
        }
        try store.finish()
    }
}
