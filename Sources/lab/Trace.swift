import ApusLab
import ArgumentParser
import Foundation

struct Trace: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "trace", abstract: "Which pages a guest uses, and when, as text on standard output.",
        discussion: "What the tests of prefetching are fed with: Tests/ApusMemoryTests/Traces.")

    @Argument(help: ArgumentHelp("Workload: \(Workload.orders.map(\.name).joined(separator: ", ")), or any other."))
    var workload: String
    @Option(help: "Milliseconds before the moment at which it might have moved.") var before = 300
    @Option(help: "Milliseconds after it.") var after = 1200
    @Option(help: "Visits per second, instead of the workload's own.") var pageRate: Int?
    @Option(help: "MiB of memory that it visits.") var hot: Int?
    @Option(help: "The QEMU that runs it.") var qemu = QemuProgram.installed

    func run() async throws {
        guard var chosen = Workload.named(workload) else { throw ValidationError("No workload \(workload).") }
        if let pageRate { chosen.pagesPerS = pageRate }
        if let hot { (chosen.hotMiB, chosen.regionMiB) = (hot, hot) }
        let command = (workload: chosen, before: before, after: after, qemu: qemu)
        let trace = try await LabCommand.interruptible {
            let image = try GuestImage.find()
            return try await UseTrace.record(
                command.workload, beforeMs: command.before, afterMs: command.after, qemu: command.qemu, image: image,
                accelerator: await Accelerator.probe(qemu: command.qemu, image: image))
        }
        print(trace.text, terminator: "")
    }
}
