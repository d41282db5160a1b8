import ApusLab
import ArgumentParser
import Foundation

struct BenchRender: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "render", abstract: "Table and chart anew from results.json files; several become one report.")

    @Argument(help: "results.json files of `bench migrate`, `lines-sweep` or `forecast`.") var files: [String]
    @Flag(help: "Draw the curves of `bench lines-sweep`.") var linesSweep = false
    @Flag(help: "Tables of `bench forecast`.") var forecast = false
    @Option(help: "Where the results go.") var output = ".build/bench"

    func run() throws {
        var reports = try files.map { file in
            try JSONDecoder().decode(Report.self, from: Data(contentsOf: URL(fileURLWithPath: file)))
        }
        guard !reports.isEmpty else { throw ValidationError("no files") }
        var report = reports.removeFirst()
        for other in reports { report.outcomes += other.outcomes }
        if forecast {
            try report.writeForecasts(into: output)
        } else if linesSweep {
            try report.writeSweep(into: output)
        } else {
            try report.write(into: output)
            report.print()
        }
        note("results: \(output)")
    }
}

extension Report {
    func print() {
        let brief: [Measure] = [
            .total, .move, .wire, .later, .downtime, .reported, .rounds, .speed, .recovery, .faults, .faultP50,
            .faultP99,
            .stall, .coverage, .accuracy, .wrong,
        ]
        Swift.print(plainTable(brief.filter(isMeasured)))
    }

    /// What the full tables show.
    private static let measures: [Measure] = [
        .total, .move, .wire, .later, .downtime, .reported, .rounds, .work, .speed, .speedPulling, .speedAfter,
        .recovery,
        .faults, .faultP50, .faultP99, .stall, .coverage, .accuracy, .recording, .speedRecording, .agents, .qemus,
        .wrong,
    ]

    /// Some peer of some workload has it.
    private func isMeasured(_ measure: Measure) -> Bool { outcomes.contains { measure.value($0) != nil } }

    /// results.json, results.md and chart.svg.
    func write(into output: String) throws {
        let chart = Chart(self, title: "A proving 512 MB guest moves: Apus beside QEMU's own migration")
        try write(markdown: markdown(Self.measures.filter(isMeasured)), svg: chart.svg, into: output)
    }

    /// The same for a sweep over changed lines: its tables before all others, its curves as the chart.
    func writeSweep(into output: String) throws {
        let sweep = LinesSweep(self)
        try write(
            markdown: sweep.markdown + "\n" + markdown(Self.measures.filter(isMeasured)), svg: sweep.svg, into: output)
    }

    /// results.json and results.md of guests that were foretold.
    func writeForecasts(into output: String) throws {
        let measured = "Measured \(date) on \(machine); guests under \(accelerator.rawValue.uppercased()).\n\n"
        try write(markdown: measured + ForecastSweep(self).markdown, svg: nil, into: output)
    }

    private func write(markdown: String, svg: String?, into output: String) throws {
        try FileManager.default.createDirectory(atPath: output, withIntermediateDirectories: true)
        let folder = URL(fileURLWithPath: output)
        try json().write(to: folder.appendingPathComponent("results.json"))
        try Data(markdown.utf8).write(to: folder.appendingPathComponent("results.md"))
        if let svg { try Data(svg.utf8).write(to: folder.appendingPathComponent("chart.svg")) }
    }
}
