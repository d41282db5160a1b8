import ApusLab
import ArgumentParser
import Foundation

struct BenchSpeed: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "speed", abstract: "How fast the machinery is: unshaped link, incompressible pages, idle guest.",
        discussion: "Apus against QEMU's own single stream: time to move, CPU seconds per GiB on each side.")

    @Option(help: "MiB of incompressible pages in the guest.") var region = 768
    @Option(help: "Peers, as of `bench migrate`.") var peers = "apus,plain"
    @Option(help: "Where the results go.") var output = ".build/bench-speed"
    @OptionGroup var options: MatrixOptions

    func run() async throws {
        let bench = self
        try await LabCommand.interruptible { try await bench.measure() }
    }

    private var guest: Workload {
        var guest = Workload(name: "incompressible", pattern: .incompressible)
        guest.regionMiB = region
        guest.hotMiB = 0
        guest.checkShare = 5
        guest.memoryKiB = (region + 256) * 1024 + 8
        guest.ram = options.ram
        return guest
    }

    private func measure() async throws {
        var matrix = try await options.matrix(workloads: "incompressible", rates: "none", peers: peers)
        matrix.workloads = [guest]
        let report = try await options.measure(matrix) { try save($0) }
        print(table(report).plain)
        for line in ratios(report) { print(line) }
    }

    private func save(_ report: Report) throws {
        try FileManager.default.createDirectory(atPath: output, withIntermediateDirectories: true)
        try report.json().write(to: URL(fileURLWithPath: "\(output)/speed.json"))
    }

    private func table(_ report: Report) -> Table {
        var table = Table([
            "peer", "moving s", "MB/s", "agent CPU s/GiB src", "dst", "QEMU CPU s/GiB src", "dst", "wrong", "failed",
        ])
        for line in report.groups.flatMap(\.lines) {
            func median(_ value: (Outcome) -> Double?) -> String {
                Spread(line.outcomes.compactMap(value)).map { brief($0.median) } ?? "-"
            }
            func perGiB(_ value: @escaping (Outcome) -> Double?) -> String {
                median { outcome in
                    guard let cpu = value(outcome), let bytes = outcome.wireBytes, bytes > 0 else { return nil }
                    return cpu / (Double(bytes) / Double(1 << 30))
                }
            }
            table.rows.append([
                line.peer, median { $0.moveMs.map { $0 / 1000 } },
                median { outcome in
                    guard let ms = outcome.moveMs, let bytes = outcome.wireBytes else { return nil }
                    return Double(bytes) / 1e3 / ms
                },
                perGiB(\.agentCPUSource), perGiB(\.agentCPUDestination), perGiB(\.qemuCPUSource),
                perGiB(\.qemuCPUDestination), "\(line.outcomes.map(\.pagesWrong).reduce(0, +))", "\(line.failures)",
            ])
        }
        return table
    }

    private func ratios(_ report: Report) -> [String] {
        let lines = report.groups.flatMap(\.lines)
        return lines.filter(\.isOurs).flatMap { ours in
            lines.filter { !$0.isOurs }.compactMap { line in
                guard let time = ours.spread(.move), let other = line.spread(.move) else { return nil }
                return "\(ours.peer) / \(line.peer): \(brief(time.median / other.median)) of the time"
            }
        }
    }
}
