import ApusLab
import ArgumentParser

struct BenchLinesSweep: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "lines-sweep", abstract: "Downtime and bytes after round 1 against changed lines per page.",
        discussion: """
            The guest changes one word in each of N lines of 64 bytes, 10,000 pages a second of a hot 64 MiB, for every N \
            of --lines. Writes results.json, results.md and chart.svg into --output.
            """)

    @Option(help: "Counts of changed lines, 1 to 64.") var lines =
        LinesSweep.lines.map(String.init).joined(separator: ",")
    @Option(help: "Link rates, for example 1G,100M,none.") var rates = "1G"
    @Option(help: "Peers, as of `bench migrate`.") var peers = "plain,xbzrle,apus-dsm-stream,apus-dsm-direct"
    @Option(help: "Where the results go.") var output = ".build/bench-lines"
    @OptionGroup var options: MatrixOptions

    func run() async throws {
        let command = self
        try await LabCommand.interruptible { try await command.measure() }
    }

    private func measure() async throws {
        let workloads = lines.split(separator: ",").map { "lines-\($0)" }.joined(separator: ",")
        let matrix = try await options.matrix(workloads: workloads, rates: rates, peers: peers)
        let report = try await options.measure(matrix) { try $0.writeSweep(into: output) }
        note("results: \(output)/results.json, results.md, chart.svg")
        print(LinesSweep(report).markdown)
        try report.mustBeGood()
    }
}
