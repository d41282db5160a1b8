import ApusContent
import ApusLab
import ApusSystem
import ArgumentParser
import Foundation

struct BenchIndexing: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "indexing", abstract: "What a guest notices of a disk being indexed beside it.",
        discussion: """
            A guest that writes as fast as it can; a disk image is indexed as an agent does it, with pauses of the same \
            length, in turns. Prints the guest's work per second with and without.
            """)

    @Option(help: "Image to index; it is only read. Its content is dropped from the page cache before each turn.")
    var image: String
    @Option(help: "Pairs of turns.") var turns = 6
    @Option(help: "Seconds of a turn.") var seconds = 4.0
    @Option(help: "MB/s read from the disk at most, as content.indexMBps.") var rate = 200.0
    @Option(help: "The QEMU to run.") var qemu = QemuProgram.installed

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
        try await Lab.with { lab in
            let pair = try await HostPair.make(in: lab, rate: nil)
            let peer = ApusPeer(program: ApusPeer.findProgram(), qemu: qemu)
            let agent = try await Agent.start("a", peer, pair.source, lab, port: 4600)
            let console = try await agent.run(
                guestCopy, as: "g", qemu: qemu, image: guestImage, accelerator: accelerator)
            lab.later("console") { await console.close() }
            var alone: [Double] = []
            var beside: [Double] = []
            let indexerNs = Monitor<UInt64>(0)
            for turn in 0..<turns * 2 {
                let isIndexing = turn % 2 == 1
                let ends = Latch()
                let indexer = isIndexing ? try indexer(lab.path("index-\(turn)"), indexerNs, until: ends) : nil
                let began = ContinuousClock.now
                try await Task.sleep(for: .seconds(seconds))
                let work = console.trace.workPerS(from: began, to: .now)
                ends.open()
                while indexer?.join(ms: 0) == false { try await Task.sleep(for: .milliseconds(10)) }
                guard let work else { throw LabError.notEnough(what: "ticks of the guest") }
                if isIndexing { beside.append(work) } else { alone.append(work) }
            }
            guard let without = Spread(alone), let with = Spread(beside) else { return }
            print(
                "guest work/s alone \(Int(without.median)) (\(Int(without.least)) to \(Int(without.most))), "
                    + "beside an indexer \(Int(with.median)) (\(Int(with.least)) to \(Int(with.most))): "
                    + "\(brief((1 - with.median / without.median) * 100)) % less; the indexer took "
                    + "\(brief(Double(indexerNs.read { $0 }) / 1e7 / seconds / Double(turns))) % of a CPU")
        }
    }

    /// As an agent's: it gives way on CPU and disk.
    private func indexer(_ sidecar: String, _ cpuNs: Monitor<UInt64>, until ends: Latch) throws -> WorkerThread {
        let file = try Descriptor.open(image, .read)
        _ = posix_fadvise(file.number, 0, 0, POSIX_FADV_DONTNEED)
        let order = IndexOrder(
            image: image, sidecar: sidecar,
            key: ContentKey(secret: Array(repeating: 1, count: ContentKey.secretBytes), domain: "bench"),
            bytesPerS: rate * 1e6)
        return try WorkerThread("bench-index", nice: WorkerThread.idle) {
            WorkerThread.giveWayOnDisk()
            while !ends.wait(ms: 0) {
                _ = try? BlockIndex.open(order) { ends.wait(ms: 0) }
                try? Folder.remove(sidecar)
            }
            let spentNs = Instant.threadCPUNs()
            cpuNs.update { $0 += spentNs }
        }
    }
}
