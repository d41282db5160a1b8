import ApusLab
import ArgumentParser

struct BenchForecast: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "forecast",
        abstract: "Guests that write a tenth to three times what the link carries: foretold, and moved.",
        discussion: """
            Each guest rewrites whole incompressible pages of a hot part of its memory. Apus is asked for a plan first, then \
            moves it, slowing it down where it must; plain QEMU moves the same guest beside it. One that does not come to \
            an end is given up after --give-up-s, which is a result. Writes results.json and results.md into --output.
            """)

    @Option(help: "Rates of writing, as shares of the link's.") var shares = "0.1,0.3,0.6,1,1.5,2,3"
    @Option(help: "MiB of memory that is rewritten.") var hot = "8,32,96"
    @Option(help: "Link rates, for example 1G,100M.") var rates = "200M"
    @Option(help: "What Apus may do: throttle, postcopy, both with a comma, none.") var allow = "throttle"
    @Flag(help: "Without plain QEMU.") var alone = false
    @Option(help: "Where the results go.") var output = ".build/bench-forecast"
    @OptionGroup var options: MatrixOptions

    func run() async throws {
        let command = self
        try await LabCommand.interruptible { try await command.measure() }
    }

    private func measure() async throws {
        var report = Report.empty(await Accelerator.probe(qemu: try options.firstQemu(), image: try GuestImage.find()))
        for rate in rates.split(separator: ",") {
            guard let bitsPerS = ApusLab.rate(named: String(rate)) ?? nil else {
                throw ValidationError("The writing is measured by the link, so it must have a rate: not \(rate).")
            }
            var matrix = try await options.matrix(
                workloads: "incompressible", rates: String(rate), peers: alone ? "apus" : "apus,plain")
            matrix.workloads = try guests(bitsPerS: bitsPerS)
            matrix.peers = matrix.peers.map { peer in
                guard case .apus(var apus) = peer else { return peer }
                (apus.allows, apus.foretells) = (allow, true)
                return .apus(apus)
            }
            let done = report
            report = try await options.measure(matrix) { part in
                var all = done
                all.outcomes += part.outcomes
                try all.writeForecasts(into: output)
            }
            report.outcomes = done.outcomes + report.outcomes
        }
        note("results: \(output)/results.json, results.md")
        print(ForecastSweep(report).markdown)
        try report.mustBeUnharmed()
    }

    private func guests(bitsPerS: UInt64) throws -> [Workload] {
        try hot.split(separator: ",").flatMap { text in
            guard let hotMiB = Int(text), (1...400).contains(hotMiB) else { throw ValidationError("No size: \(text).") }
            return try shares.split(separator: ",").map { text in
                guard let share = Double(text), share > 0 else { throw ValidationError("No share: \(text).") }
                return ForecastSweep.guest(hotMiB: hotMiB, share: share, bitsPerS: bitsPerS)
            }
        }
    }
}
