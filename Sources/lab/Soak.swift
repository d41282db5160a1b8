import ApusAPI
import ApusLab
import ArgumentParser
import Foundation

struct Soak: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "One proving guest goes to and fro between two agents until time is up.")

    @Option(help: "Minutes.") var minutes = 10.0
    @Option(help: "End after so many hops, if that is sooner.") var hops = Int.max
    @Option(help: ArgumentHelp("\(Workload.names.joined(separator: ", ")).")) var workload = "few"
    @Option(help: "Rate of the link.") var rate = "1G"
    @Option(help: "The QEMU to run.") var qemu = QemuProgram.installed
    @Option(help: "Where guest RAM is: plain, anonymous, memfd, file.") var ram = Workload.RAM.plain
    @Option(help: "auto, stream, direct; as Apus decides if not given.") var port: ApusPeer.Port?
    @Option(help: "plain, dsm, hybrid, postcopy; as Apus decides if not given.") var mode: ApusPeer.Mode?
    @Option(
        help: "In every hop but the first the wire is pulled out for so many seconds, at a random moment of it.")
    var cutS: Double?
    @Option(help: "Where these moments begin.") var seed: UInt64 = 1

    func run() async throws {
        let soak = self
        try await LabCommand.interruptible { try await soak.soak() }
    }

    private func soak() async throws {
        guard var workload = Workload.named(workload) else { throw ValidationError("no workload \(workload)") }
        guard let link = ApusLab.rate(named: rate) else { throw ValidationError("no rate \(rate)") }
        workload.ram = ram
        let guest = workload
        let image = try GuestImage.find()
        let accelerator = await Accelerator.probe(qemu: qemu, image: image)
        var peer = ApusPeer(program: ApusPeer.findProgram(), qemu: qemu)
        peer.port = port
        peer.mode = mode
        let mover = peer
        let end = ContinuousClock.now + .seconds(minutes * 60)
        let tally = try await Lab.with(keepsLogs: true) { lab in
            let pair = try await HostPair.make(in: lab, rate: link)
            var shuttle = try await Shuttle.launch(mover, guest, pair, lab, image, accelerator)
            var tally = Tally(seed: seed)
            while ContinuousClock.now < end, tally.hops < hops {
                let cut = tally.nextCut(forS: cutS)
                tally.take(try await shuttle.hop(cut), after: cut)
            }
            return tally
        }
        print(tally.verdict)
    }
}

/// What a soak has seen.
private struct Tally {
    private var random: SplitMix
    private var moved = 0
    private var stayed = 0
    private var pulledPages: UInt64 = 0
    /// Of a hop without a cut.
    private var usualMs: Double?
    var hops: Int { moved + stayed }

    init(seed: UInt64) { random = SplitMix(seed: seed) }

    mutating func nextCut(forS seconds: Double?) -> Shuttle.Cut? {
        guard let seconds, let usualMs else { return nil }
        return Shuttle.Cut(afterMs: Double.random(in: 0..<usualMs, using: &random), forMs: seconds * 1000)
    }

    mutating func take(_ hop: Shuttle.Hop, after cut: Shuttle.Cut?) {
        let cutText = cut.map { "cut at \(brief($0.afterMs / 1000)) s, " } ?? ""
        switch hop {
        case .moved(let summary):
            moved += 1
            if cut == nil { usualMs = summary.totalMs }
            let pull = summary.pull
            pulledPages += pull?.missingPages ?? 0
            let pages =
                pull.map {
                    "\($0.missingPages) pages followed, \($0.faultedPages + $0.pushedPages) of them installed, "
                } ?? ""
            note("hop \(hops): \(cutText)\(brief(summary.totalMs / 1000)) s, \(pages)all pages right")
        case .stayed(let reason):
            stayed += 1
            note("hop \(hops): \(cutText)stayed, all pages right: \(reason)")
        }
    }

    var verdict: String {
        "\(hops) migrations: \(moved) moved, \(stayed) given up with the guest where it was; no VM lost, no page wrong"
            + (pulledPages > 0 ? "; \(pulledPages) pages followed" : "")
    }
}
