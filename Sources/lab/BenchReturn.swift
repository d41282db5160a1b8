import ApusAPI
import ApusLab
import ArgumentParser

struct BenchReturn: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "return", abstract: "A guest that goes from A to B and comes back.",
        discussion: """
            Each hop with what it put on the wire, as the interface counts it in both directions, and in which forms. The \
            way back begins when A has kept what the guest left there; meanwhile the guest works on.
            """)

    @Option(help: ArgumentHelp("\(Workload.names.joined(separator: ", ")).")) var workload = "idle-cache"
    @Option(help: "Rate of the link.") var rate = "1G"
    @Option(help: "The peer, an Apus one.") var peer = "apus-direct-ref"
    @Option(help: "Hops; every other one goes back.") var hops = 4
    @Option(help: "The QEMU to run.") var qemu = QemuProgram.installed

    func run() async throws {
        let command = self
        try await LabCommand.interruptible { try await command.measure() }
    }

    private func measure() async throws {
        guard let guest = Workload.named(workload) else { throw ValidationError("no workload \(workload)") }
        guard let link = ApusLab.rate(named: rate) else { throw ValidationError("no rate \(rate)") }
        guard let mover = ApusPeer.named(peer, program: ApusPeer.findProgram(), qemu: qemu) else {
            throw ValidationError("no Apus peer \(peer)")
        }
        let image = try GuestImage.find()
        let accelerator = await Accelerator.probe(qemu: qemu, image: image)
        let count = hops
        try await Lab.with { lab in
            let pair = try await HostPair.make(in: lab, rate: link)
            var shuttle = try await Shuttle.launch(mover, guest, pair, lab, image, accelerator)
            for _ in 0..<count {
                let (job, wireBytes) = try await shuttle.measuredHop()
                guard let summary = job.summary else { continue }
                let forms = summary.forms.filter { $0.pages > 0 }
                    .map { "\($0.form) \($0.pages) (\(brief(Double($0.wireBytes) / 1e6)) MB)" }.joined(separator: ", ")
                print(
                    "hop \(shuttle.hops): \(brief(summary.totalMs / 1000)) s, \(brief(Double(wireBytes) / 1e6)) MB, "
                        + "pause \(brief(summary.downtimeMs ?? 0)) ms; pages: \(forms)")
                for text in job.notes { print("       \(text)") }
            }
        }
    }
}
