import ApusLab
import ArgumentParser
import Foundation

struct Soak: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "One proving guest goes to and fro between two agents until time is up.")

    @Option(help: "Minutes.") var minutes = 10.0
    @Option(help: ArgumentHelp("\(Workload.names.joined(separator: ", ")).")) var workload = "few"
    @Option(help: "Rate of the link.") var rate = "1G"
    @Option(help: "The QEMU to run.") var qemu = QemuProgram.installed
    @Option(help: "Where guest RAM is: plain, anonymous, memfd, file.") var ram = Workload.RAM.plain

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
        let peer = ApusPeer(program: ApusPeer.findProgram(), qemu: qemu)
        let end = ContinuousClock.now + .seconds(minutes * 60)
        let hops = try await Lab.with(keepsLogs: true) { lab in
            let pair = try await HostPair.make(in: lab, rate: link)
            var shuttle = try await Shuttle.launch(peer, guest, pair, lab, image, accelerator)
            while ContinuousClock.now < end {
                let ms = try await shuttle.hop()
                note("hop \(shuttle.hops): \(brief(ms / 1000)) s, all pages right")
            }
            return shuttle.hops
        }
        print("\(hops) migrations in \(brief(minutes)) min, no page wrong")
    }
}
