import ApusLab
import ArgumentParser
import Foundation

struct BenchRender: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "render", abstract: "Table and chart anew from results.json files; several become one report.")

    @Argument(help: "results.json files of `bench migrate`.") var files: [String]
    @Option(help: "Where the results go.") var output = ".build/bench"

    func run() throws {
        var reports = try files.map { file in
            try JSONDecoder().decode(Report.self, from: Data(contentsOf: URL(fileURLWithPath: file)))
        }
        guard !reports.isEmpty else { throw ValidationError("no files") }
        var report = reports.removeFirst()
        for other in reports { report.outcomes += other.outcomes }
        try report.write(into: output)
        report.print()
    }
}

extension Report {
    func print() {
        Swift.print(plainTable([.total, .move, .wire, .downtime, .reported, .rounds, .speed, .wrong]))
    }

    /// results.json, results.md and chart.svg.
    func write(into output: String) throws {
        try FileManager.default.createDirectory(atPath: output, withIntermediateDirectories: true)
        let folder = URL(fileURLWithPath: output)
        try json().write(to: folder.appendingPathComponent("results.json"))
        let measures: [Measure] = [
            .total, .move, .wire, .downtime, .reported, .rounds, .speed, .agents, .qemus, .wrong,
        ]
        try Data(markdown(measures).utf8).write(to: folder.appendingPathComponent("results.md"))
        let chart = Chart(self, title: "A proving 512 MB guest moves: Apus beside QEMU's own migration")
        try Data(chart.svg.utf8).write(to: folder.appendingPathComponent("chart.svg"))
        note("results: \(folder.path)/results.json, results.md, chart.svg")
    }
}
