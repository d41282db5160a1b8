import ApusLab
import ArgumentParser

struct BenchMigrate: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "migrate", abstract: "The same guest moved by Apus and by QEMU in several forms.",
        discussion: """
            Writes results.json, results.md and chart.svg into --output. Each migration boots a fresh guest that proves \
            its memory and counts its ticks; wire bytes come from the interface counters.
            """)

    @Option(help: ArgumentHelp("Workloads: \(Workload.names.joined(separator: ", ")) (N: 1 to 64)."))
    var workloads = "idle,incompressible,compressible,few,readmostly"
    @Option(help: "Link rates, for example 1G,100M,none.") var rates = "1G,100M"
    @Option(
        help: """
            Peers: apus, plain, xbzrle, multifd+zstd, postcopy+preempt, auto-converge; apus-stream, apus-direct, apus-dsm, \
            apus-dsm-stream, apus-dsm-direct choose port and mode, apus-dsm-rebase moves private RAM into a file first.
            """)
    var peers = "apus,plain,xbzrle,multifd+zstd,postcopy+preempt"
    @Flag(help: "One run of two workloads on 1 Gb/s.") var quick = false
    @Option(help: "Where the results go.") var output = ".build/bench"
    @OptionGroup var options: MatrixOptions

    func run() async throws {
        let command = self
        try await LabCommand.interruptible { try await command.measure() }
    }

    private func measure() async throws {
        var matrix = try await options.matrix(
            workloads: quick ? "idle,incompressible" : workloads, rates: quick ? "1G" : rates, peers: peers)
        if quick { matrix.runs = 1 }
        let report = try await options.measure(matrix) { try $0.write(into: output) }
        note("results: \(output)/results.json, results.md, chart.svg")
        report.print()
        try report.mustBeGood()
    }
}
