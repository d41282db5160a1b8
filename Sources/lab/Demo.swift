import ApusLab
import ArgumentParser
import Foundation

struct Demo: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "A running VM moves between two agents; plain QEMU moves the same VM on the same link.")

    @Option(help: ArgumentHelp("\(Workload.names.joined(separator: ", ")).")) var workload = "compressible"
    @Option(help: "Rate of the link between the two hosts.") var rate = "1G"
    @Option(help: "The QEMU to run.") var qemu = QemuProgram.installed
    @Option(help: "Where guest RAM is: plain, anonymous, memfd, file.") var ram = Workload.RAM.plain

    func run() async throws {
        let demo = self
        try await LabCommand.interruptible { try await demo.show() }
    }

    private func show() async throws {
        guard var workload = Workload.named(workload) else { throw ValidationError("no workload \(workload)") }
        guard let link = ApusLab.rate(named: rate) else { throw ValidationError("no rate \(rate)") }
        workload.ram = ram
        let image = try GuestImage.find()
        let accelerator = await Accelerator.probe(qemu: qemu, image: image)
        let program = try await QemuProgram.identify(path: qemu)
        introduce(workload, link, accelerator, program)

        let apus = ApusPeer(program: ApusPeer.findProgram(), qemu: qemu)
        heading("1. Apus")
        let ours = try await Lab.with(logs: .detailed) { lab in
            let pair = try await HostPair.make(in: lab, rate: link)
            return try await apus.migrate(
                workload, over: pair, in: lab, image: image, accelerator: accelerator, narrate: note)
        }
        tell(ours)
        heading("2. QEMU \(program.version) by itself")
        let plain = PlainQemu(program: qemu, version: program.version, mode: .plain)
        let theirs = try await Lab.with { lab in
            let pair = try await HostPair.make(in: lab, rate: link)
            return try await plain.migrate(workload, over: pair, in: lab, image: image, accelerator: accelerator)
        }
        tell(theirs)
        heading("3. Side by side: \(workload.name) guest, \(rateName(HostPair.canMakeNamespaces ? link : nil))")
        print(Self.sideBySide([ours, theirs]))
        guard ours.isProved && theirs.isProved else { throw ExitCode(1) }
    }

    private func introduce(
        _ workload: Workload, _ link: UInt64?, _ accelerator: Accelerator, _ program: QemuProgram
    ) {
        let program = "QEMU \(program.version), \(accelerator.rawValue.uppercased())"
        let work = workload.pattern == .redis ? "has redis-server answer" : "rewrites"
        let unit = workload.pattern == .redis ? "requests" : "pages"
        note("A \(workload.memoryKiB / 1024) MB guest (\(program)) \(work)")
        note("\(workload.pagesPerS) \(unit) a second and compares all it wrote, for ever; it ticks every 5 ms.")
        if HostPair.canMakeNamespaces {
            note("The hosts are two network namespaces joined by a \(rateName(link)) link.")
        } else {
            note("Not root: the hosts are two ports on the loopback, unshaped, and wire bytes cannot be counted.")
        }
    }

    private func heading(_ text: String) { note("\n\(text)") }

    private func tell(_ outcome: Outcome) {
        let pause = outcome.pause.map { "\(brief($0.downtimeMs)) ms of silence" } ?? "no pause measured"
        note(
            "\(outcome.ticksAfter) ticks at the destination after \(pause), \(outcome.pause?.ticksLost ?? 0) lost; "
                + "\(outcome.checksAfter) full check\(outcome.checksAfter == 1 ? "" : "s") begun there, "
                + "\(outcome.pagesWrong) pages wrong")
    }

    static func sideBySide(_ outcomes: [Outcome]) -> String {
        var table = Table([""] + outcomes.map(\.peer))
        func row(_ name: String, _ value: (Outcome) -> String?) {
            table.rows.append([name] + outcomes.map { value($0) ?? "-" })
        }
        row("total time") { $0.totalMs.map { "\(brief($0 / 1000)) s" } }
        row("  of it starting the destination QEMU") { $0.prepareMs.map { "\(brief($0 / 1000)) s" } }
        row("downtime as the guest's ticks show it") { $0.pause.map { "\(brief($0.downtimeMs)) ms" } }
        row("downtime as reported") { $0.reportedDowntimeMs.map { "\(brief($0)) ms" } }
        row("bytes on the wire") { $0.wireBytes.map { "\(brief(Double($0) / 1e6)) MB" } }
        row("rounds") { $0.rounds.map(String.init) }
        row("guest speed during, of before") { outcome in
            Report.Measure.speed.value(outcome).map { "\(brief($0)) %" }
        }
        row("pages wrong") { "\($0.pagesWrong)" }
        return table.plain
    }
}

extension Outcome {
    /// The guest ran on, checked all its memory after the switch and found nothing wrong.
    var isProved: Bool { failure == nil && ticksAfter > 0 && checksAfter > 0 && pagesWrong == 0 }
}
