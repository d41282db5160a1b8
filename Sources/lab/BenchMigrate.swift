import ApusLab
import ArgumentParser
import Foundation

struct BenchMigrate: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "migrate", abstract: "The same guest moved by Apus and by QEMU in several forms.",
        discussion: """
            Writes results.json, results.md and chart.svg into --output. Each migration boots a fresh guest that proves \
            its memory and counts its ticks; wire bytes come from the interface counters.
            """)

    @Option(help: "Runs of each combination.") var runs = 3
    @Option(help: "Workloads: idle, incompressible, compressible, few, readmostly.") var workloads =
        "idle,incompressible,compressible,few,readmostly"
    @Option(help: "Link rates, for example 1G,100M,none.") var rates = "1G,100M"
    @Option(help: "Peers: apus, plain, xbzrle, multifd+zstd, postcopy+preempt.") var peers =
        "apus,plain,xbzrle,multifd+zstd,postcopy+preempt"
    @Option(help: "A QEMU 10 to compare with too (./dev qemu10 prints one).") var qemu10: String?
    @Option(help: "The QEMU that Apus runs, and the first to compare with.") var qemu = QemuProgram.installed
    @Flag(help: "One run of two workloads on 1 Gb/s.") var quick = false
    @Flag(help: "Guest RAM in a shared memfd instead of QEMU's own.") var shared = false
    @Option(help: "Guest page writes per second, instead of each workload's own.") var pageRate: Int?
    @Option(help: "Where the results go.") var output = ".build/bench"

    func run() async throws {
        let command = self
        try await LabCommand.interruptible { try await command.measure() }
    }

    private func measure() async throws {
        let image = try GuestImage.find()
        let accelerator = await Accelerator.probe(qemu: qemu, image: image)
        let matrix = try await matrix()
        note("\(matrix.cells.count) migrations, guests under \(accelerator.rawValue.uppercased())")
        var report = Report.empty(accelerator)
        report.outcomes = try await matrix.measure(image: image, accelerator: accelerator) {
            cell, outcome, index, total in
            note(
                "[\(index)/\(total)] \(cell.workload.name), \(rateName(cell.rate)), \(cell.peer.label): \(outcome.line)"
            )
        }
        try report.write(into: output)
        report.print()
        if report.outcomes.contains(where: { $0.pagesWrong > 0 || $0.failure != nil }) { throw ExitCode(1) }
    }

    private func matrix() async throws -> Matrix {
        var chosen: [Workload] = []
        for name in (quick ? "idle,incompressible" : workloads).split(separator: ",") {
            guard var workload = Workload.named(String(name)) else { throw ValidationError("no workload \(name)") }
            workload.sharesMemory = shared
            if let pageRate { workload.pagesPerS = pageRate }
            chosen.append(workload)
        }
        let links = try (quick ? "1G" : rates).split(separator: ",").map { text in
            guard let rate = ApusLab.rate(named: String(text)) else { throw ValidationError("no rate \(text)") }
            return rate
        }
        var programs = [try await QemuProgram.identify(path: qemu)]
        if let qemu10 { programs.append(try await QemuProgram.identify(path: qemu10)) }
        let movers = try Self.movers(peers, programs: programs)
        guard !chosen.isEmpty, !links.isEmpty, !movers.isEmpty else { throw ValidationError("nothing to measure") }
        return Matrix(workloads: chosen, rates: links, peers: movers, runs: quick ? 1 : runs)
    }

    /// Apus runs the first of the programs; QEMU's own modes are measured with each.
    static func movers(_ names: String, programs: [QemuProgram]) throws -> [Peer] {
        try names.split(separator: ",").flatMap { name -> [Peer] in
            if name == "apus" {
                return programs.prefix(1).map { .apus(ApusPeer(program: ApusPeer.findProgram(), qemu: $0.path)) }
            }
            guard let mode = PlainQemu.Mode(rawValue: String(name)) else { throw ValidationError("no peer \(name)") }
            return programs.map { .qemu(PlainQemu(program: $0.path, version: $0.version, mode: mode)) }
        }
    }
}

extension Outcome {
    /// One line for the log of a long measurement.
    var line: String {
        if let failure { return "FAILED \(failure)" }
        func text(_ value: Double?, _ unit: String) -> String { value.map { "\(brief($0)) \(unit)" } ?? "-" }
        return [
            text(totalMs.map { $0 / 1000 }, "s"), text(wireBytes.map { Double($0) / 1e6 }, "MB"),
            "pause " + text(pause?.downtimeMs, "ms"), "reported " + text(reportedDowntimeMs, "ms"),
            "rounds \(rounds.map(String.init) ?? "-")", "wrong \(pagesWrong)", "checks \(checksAfter)",
        ].joined(separator: ", ")
    }
}
