import ApusAPI
import ArgumentParser

struct PlanVerb: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "plan",
        abstract: "Say what moving a VM would take, without moving it.",
        discussion: "Watches the running VM for some seconds, reads a part of its memory, and probes the link.")

    @Argument(help: "The VM's name.") var name: String?
    @Argument(help: "The destination agent: a name from the agent's configuration, or ADDRESS[:PORT].") var host:
        String?
    @Option(help: ArgumentHelp("The longest pause you accept, in milliseconds.", valueName: "ms")) var maxDowntime = 300
    @Option(help: ArgumentHelp("How long the VM's writing is watched.", valueName: "s")) var seconds = 2.0
    @Flag(help: "Count no page as one that the destination reads itself.") var noReferences = false
    @Flag(help: "Instead: how near the forecasts of this agent's migrations came.") var accuracy = false
    @OptionGroup var connection: Connection

    func validate() throws {
        if accuracy != (name == nil && host == nil) || (name == nil) != (host == nil) {
            throw ValidationError("Give a VM and a host, or --accuracy alone.")
        }
        if maxDowntime < 1 { throw ValidationError("--max-downtime must be at least 1 ms.") }
        if !(0.5...60).contains(seconds) { throw ValidationError("--seconds must be from 0.5 to 60.") }
    }

    func run() async throws {
        guard let name, let host else {
            return try await connection.run { client in
                let report: AccuracyReport = try await client.get("/v1/plans/accuracy")
                connection.show(report, Text.details(of: report))
            }
        }
        let request = PlanRequest(
            vm: name, host: host, maxDowntimeMs: maxDowntime, seconds: seconds,
            references: noReferences ? false : nil)
        try await connection.run { client in
            let plan: PlanReport = try await client.post("/v1/plans", request)
            connection.show(plan, Text.details(of: plan))
        }
    }
}

extension Text {
    static func details(of plan: PlanReport) -> String {
        let facts = list([
            ("link", "\(Units.rate(plan.linkBytesPerS)), round trip \(Units.milliseconds(plan.roundTripMs))"),
            (
                "memory",
                "\(Units.memory(plan.memoryBytes)), \(percent(plan.zeroShare)) of it zero, \(elsewhere(plan))"
                    + "\(percent(plan.squeezedShare)) compressible; "
                    + "\(Units.decimals(plan.bytesPerPage, 0)) bytes a page on the link"
            ),
            (
                "writing",
                "\(Units.rate(plan.writtenBytesPerS)), working set \(Units.bytes(UInt64(plan.workingSetBytes)))"
            ),
        ])
        let rows = plan.options.map { option in
            [
                option.port.rawValue, option.mode.rawValue, range(option.totalMs) { Units.duration($0) },
                range(option.wireBytes) { Units.bytes(UInt64($0)) },
                range(option.downtimeMs) { Units.milliseconds($0) }, ending(option, plan.maxDowntimeMs),
            ]
        }
        let table = columns([["PORT", "MODE", "TIME", "BYTES", "DOWNTIME", ""]] + rows)
        return ([facts, table, advice(plan)] + plan.notes).joined(separator: "\n")
    }

    private static func elsewhere(_ plan: PlanReport) -> String {
        (plan.diskShare > 0 ? "\(percent(plan.diskShare)) on its disks, " : "")
            + (plan.snapshotShare > 0 ? "\(percent(plan.snapshotShare)) left at the host, " : "")
    }

    private static func advice(_ plan: PlanReport) -> String {
        guard let best = plan.options.first else { return "There is no way to move it." }
        guard best.ending == .tooBusy else {
            let mode = best.ending == .follows ? " --mode \(best.mode.rawValue)" : ""
            return
                "Recommended: apus migrate \(quoted(plan.vm)) \(quoted(plan.host)) --port \(best.port.rawValue)\(mode)"
        }
        let needed = Int((best.downtimeMs.high / 10).rounded(.up)) * 10
        return "It writes too fast for this link and a pause of \(plan.maxDowntimeMs) ms; "
            + "with --max-downtime \(needed) it would go."
    }

    static func details(of report: AccuracyReport) -> String {
        let forecasts = [("at the start", report.atStart), ("at the switch", report.atGate)]
        let rows = forecasts.compactMap { name, errors in
            errors.map { errors in
                [name, "\(errors.migrations)"]
                    + [errors.totalMs, errors.wireBytes, errors.downtimeMs].map {
                        "\(percent($0.median)), \(percent($0.p90))"
                    }
            }
        }
        guard !rows.isEmpty else { return "No migration has been foretold yet." }
        return columns([["ERROR: MEDIAN, P90", "MIGRATIONS", "TIME", "BYTES", "DOWNTIME"]] + rows)
    }

    private static func ending(_ option: PlanOption, _ maxDowntimeMs: Int) -> String {
        switch option.ending {
        case .slowed: "ends with the VM at \(percent(option.slowedTo ?? 1)) of its speed"
        case .follows: "memory follows the VM"
        case .converges: "converges"
        case .fits: "does not converge, fits \(maxDowntimeMs) ms"
        case .tooBusy: "does not fit \(maxDowntimeMs) ms"
        }
    }

    private static func range(_ range: PlanRange, _ text: (Double) -> String) -> String {
        let (low, high) = (text(range.low), text(range.high))
        return low == high ? text(range.likely) : "\(text(range.likely)) (\(low) to \(high))"
    }

    private static func percent(_ share: Double) -> String { "\(Units.decimals(share * 100, 0)) %" }
}
