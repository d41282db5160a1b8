public import ApusLab
public import ArgumentParser

/// What all comparisons of migrations take.
struct MatrixOptions: ParsableArguments {
    @Option(help: "Runs of each combination.") var runs = 3
    @Option(
        name: .customLong("qemu"),
        help:
            "QEMUs, for example \(QemuProgram.installed),10: every peer is measured with each. 10: that of ./dev qemu10."
    )
    var qemuNames = QemuProgram.installed
    @Option(
        help: """
            Where guest RAM is: plain (QEMU's own; under Apus a shared file, as `apus vm run` makes it), anonymous \
            (QEMU's own, under Apus too), memfd, file (a shared file on tmpfs for every peer).
            """)
    var ram = Workload.RAM.plain
    @Option(help: "Guest page writes (redis: requests) per second, instead of each workload's own.") var pageRate: Int?
    @Option(help: "Lanes of Apus, for example 1,2,4: each Apus peer is measured with each; without it, its default.")
    var lanes: String?
    @Option(help: "Seconds after which a migration that has not come to an end is given up.") var giveUpS = 150.0
    @Option(help: "MiB of xbzrle's cache, rounded down to a power of two; without it a sixteenth of the guest's RAM.")
    var xbzrleCache: Int?
    @Option(help: "Milliseconds that every link adds to the time of a round trip.") var rttMs = 0.0

    /// - Throws: `ValidationError` naming what is not understood, or that nothing is left to measure.
    func matrix(workloads: String, rates: String, peers: String) async throws -> Matrix {
        let chosen = try workloads.split(separator: ",").map { name in
            guard var workload = Workload.named(String(name)) else {
                throw ValidationError("No workload \(name); there are \(Workload.names.joined(separator: ", ")).")
            }
            workload.ram = ram
            if let pageRate { workload.pagesPerS = pageRate }
            return workload
        }
        let links = try rates.split(separator: ",").map { text in
            guard let rate = ApusLab.rate(named: String(text)) else {
                throw ValidationError("No rate \(text); write 1G, 100M or none.")
            }
            return rate
        }
        let movers = try await movers(peers)
        guard !chosen.isEmpty, !links.isEmpty, !movers.isEmpty, runs > 0, giveUpS >= 1, (0...1000).contains(rttMs)
        else {
            throw ValidationError("Nothing to measure.")
        }
        var matrix = Matrix(workloads: chosen, rates: links, peers: movers, runs: runs)
        matrix.rttMs = rttMs
        return matrix
    }

    /// Programs of the QEMUs; not empty.
    private func qemuPaths() throws -> [String] {
        let paths = try qemuNames.split(separator: ",").map { name in
            guard name == "10" else { return String(name) }
            guard let newer = QemuProgram.newer else {
                throw ValidationError("There is no QEMU 10 here; ./dev qemu10 gets it.")
            }
            return newer
        }
        guard !paths.isEmpty else { throw ValidationError("No QEMU.") }
        return paths
    }

    /// The first one also tells the accelerator.
    func firstQemu() throws -> String { try qemuPaths()[0] }

    private func movers(_ names: String) async throws -> [Peer] {
        let counts = try laneCounts()
        var programs: [QemuProgram] = []
        for path in try qemuPaths() { programs.append(try await QemuProgram.identify(path: path)) }
        return try names.split(separator: ",").map(String.init).flatMap { name -> [Peer] in
            if let apus = ApusPeer.named(name, program: ApusPeer.findProgram(), qemu: programs[0].path) {
                return programs.flatMap { program in
                    counts.map { count in
                        var peer = apus
                        peer.qemu = program.path
                        if program != programs[0] { peer.qemuVersion = program.version }
                        peer.lanes = count
                        peer.timeoutS = giveUpS
                        return .apus(peer)
                    }
                }
            }
            guard let mode = PlainQemu.Mode(rawValue: name) else {
                let modes = PlainQemu.Mode.allCases.map(\.rawValue).joined(separator: ", ")
                throw ValidationError(
                    "No peer \(name); there are apus, apus-PORT, apus-MODE, apus-MODE-PORT (PORT: auto, stream, direct, "
                        + "rebase; MODE: plain, dsm, hybrid, postcopy; each with -ref and -nohold too), \(modes).")
            }
            return programs.map { program in
                var plain = PlainQemu(program: program.path, version: program.version, mode: mode)
                plain.xbzrleCacheMiB = xbzrleCache
                plain.timeoutS = giveUpS
                return .qemu(plain)
            }
        }
    }

    private func laneCounts() throws -> [Int?] {
        guard let lanes else { return [nil] }
        return try lanes.split(separator: ",").map { text in
            guard let count = Int(text), count > 0 else { throw ValidationError("No count of lanes: \(text).") }
            return count
        }
    }

    /// Measures; tells each outcome as it comes, and saves what there is, so that an interruption costs one migration.
    func measure(_ matrix: Matrix, save: (Report) throws -> Void) async throws -> Report {
        let image = try GuestImage.find()
        let accelerator = await Accelerator.probe(qemu: try firstQemu(), image: image)
        note("\(matrix.cells.count) migrations, guests under \(accelerator.rawValue.uppercased())")
        var report = Report.empty(accelerator)
        try await matrix.measure(image: image, accelerator: accelerator) {
            cell, outcome, index, total in
            let what = "\(cell.workload.name), \(linkName(cell.rate, rttMs: outcome.rttMs)), \(cell.peer.label)"
            note("[\(index)/\(total)] \(what): \(outcome.line)")
            report.outcomes.append(outcome)
            try save(report)
        }
        return report
    }
}

extension Workload.RAM: ExpressibleByArgument {}
extension ApusPeer.Port: ExpressibleByArgument {}
extension ApusPeer.Mode: ExpressibleByArgument {}

extension Outcome {
    /// One line for the log of a long measurement.
    var line: String {
        if let failure { return "FAILED \(failure)" }
        func text(_ value: Double?, _ unit: String) -> String { value.map { "\(brief($0)) \(unit)" } ?? "-" }
        return [
            text(totalMs.map { $0 / 1000 }, "s"), text(wireBytes.map { Double($0) / 1e6 }, "MB"),
            "after round 1 " + text(bytesAfterRound1.map { Double($0) / 1e6 }, "MB"),
            "pause " + text(pause?.downtimeMs, "ms"), "reported " + text(reportedDowntimeMs, "ms"),
            "rounds \(rounds.map(String.init) ?? "-")", "speed " + text(Report.Measure.speed.value(self), "%"),
            "wrong \(pagesWrong)", "checks \(checksAfter)",
        ].joined(separator: ", ")
    }
}

extension Report {
    /// Exit status 1 when a guest was harmed; not to come to an end is a result.
    func mustBeUnharmed() throws { if outcomes.contains(where: { $0.pagesWrong > 0 }) { throw ExitCode(1) } }

    /// Exit status 1 when a guest was harmed or a migration was not made.
    func mustBeGood() throws {
        if outcomes.contains(where: { $0.pagesWrong > 0 || $0.failure != nil }) { throw ExitCode(1) }
    }
}
