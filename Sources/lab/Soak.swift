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
    @Option(help: "Milliseconds that it adds to the time of a round trip.") var rttMs = 0.0
    @Option(help: "The QEMU to run.") var qemu = QemuProgram.installed
    @Option(help: "Where guest RAM is: plain, anonymous, memfd, file.") var ram = Workload.RAM.plain
    @Option(help: "auto, stream, direct; as Apus decides if not given.") var port: ApusPeer.Port?
    @Option(help: "plain, dsm, hybrid, postcopy; as Apus decides if not given.") var mode: ApusPeer.Mode?
    @Option(
        help: """
            The wire is pulled out for so many seconds: with mode hybrid or postcopy in every hop, while pages follow the \
            guest, with a random share of them missing; else in every hop but the first, at a random moment of it.
            """)
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
        let tally = try await Lab.with(logs: .detailed) { lab in
            let pair = try await HostPair.make(in: lab, rate: link, rttMs: rttMs)
            var shuttle = try await Shuttle.launch(mover, guest, pair, lab, image, accelerator)
            var tally = Tally(seed: seed, follows: mode == .hybrid || mode == .postcopy)
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
    private var cuts = 0
    private var pulledPages: UInt64 = 0
    private var pagesTwice: UInt64 = 0
    /// Pages follow the guest.
    private let follows: Bool
    /// Of a hop without a cut.
    private var usualMs: Double?
    var hops: Int { moved + stayed }

    init(seed: UInt64, follows: Bool) {
        random = SplitMix(seed: seed)
        self.follows = follows
    }

    mutating func nextCut(forS seconds: Double?) -> Shuttle.Cut? {
        guard let seconds else { return nil }
        let share = Double.random(in: 0..<1, using: &random)
        if follows { return Shuttle.Cut(.missing(share: share), forMs: seconds * 1000) }
        return usualMs.map { Shuttle.Cut(.after(ms: share * $0), forMs: seconds * 1000) }
    }

    mutating func take(_ hop: Shuttle.Hop, after cut: Shuttle.Cut?) {
        var cutText = cut.map(\.text) ?? ""
        switch hop {
        case .moved(let summary, let wasCut):
            moved += 1
            cuts += wasCut ? 1 : 0
            if !wasCut { cutText = cut == nil ? "" : "not cut, all had come; " }
            if cut == nil { usualMs = summary.totalMs }
            let pull = summary.pull
            pulledPages += pull?.missingPages ?? 0
            pagesTwice += pull?.pagesTwice ?? 0
            let pages =
                pull.map {
                    "\($0.missingPages) pages followed, \($0.faultedPages + $0.pushedPages) of them installed, "
                        + "\($0.pagesTwice) sent twice, "
                } ?? ""
            note("hop \(hops): \(cutText)\(brief(summary.totalMs / 1000)) s, \(pages)all pages right")
        case .stayed(let reason):
            stayed += 1
            note("hop \(hops): \(cutText)stayed, all pages right: \(reason)")
        }
    }

    var verdict: String {
        "\(hops) migrations, \(cuts) cut off: \(moved) moved, \(stayed) given up with the guest where it was; no VM lost, "
            + "no page wrong"
            + (pulledPages > 0 ? "; \(pulledPages) pages followed, \(pagesTwice) were sent twice" : "")
    }
}

extension Shuttle.Cut {
    fileprivate var text: String {
        switch moment {
        case .after(let ms): "cut at \(brief(ms / 1000)) s, "
        case .missing(let share): "cut with \(brief(share * 100)) % missing, "
        }
    }
}

extension PullSummary {
    /// Pages that the source gave beyond those that were installed: on their way when the wire was pulled out, or asked for
    /// while they were.
    fileprivate var pagesTwice: UInt64 {
        guard let prefetch else { return 0 }
        let pushed = prefetch.nearPages + prefetch.trendPages + prefetch.recordedPages + prefetch.restPages
        return pushed - min(pushedPages, pushed)
    }
}
