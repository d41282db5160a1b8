internal import ApusAPI
public import Foundation

/// All runs of a comparison and what they were made on; the JSON file, and the source of table and chart.
public struct Report: Sendable, Equatable, Codable {
    public var machine: String
    public var date: String
    public var accelerator: Accelerator
    public var outcomes: [Outcome]

    public init(machine: String, date: String, accelerator: Accelerator, outcomes: [Outcome]) {
        self.machine = machine
        self.date = date
        self.accelerator = accelerator
        self.outcomes = outcomes
    }

    /// What is compared, each a column of the table and of the chart.
    public enum Measure: String, Sendable, CaseIterable {
        case total = "total s"
        case move = "moving s"
        case wire = "wire MB"
        case later = "MB after round 1"
        case downtime = "downtime ms (guest)"
        case reported = "downtime ms (reported)"
        case running = "guest's clock ran, ms"
        case rounds
        case work = "guest work/s before"
        case speed = "guest speed during, %"
        case speedAfter = "guest speed after, %"
        case speedPulling = "guest speed pulling, %"
        case recovery = "95 % speed after ms"
        case faults
        case faultP50 = "fault p50 ms"
        case faultP99 = "fault p99 ms"
        case coverage = "in time, %"
        case accuracy = "foreseen rightly, %"
        case recording = "recording, % of the window"
        case speedRecording = "guest speed recording, %"
        case stall = "stalled ms"
        case agents = "agent CPU s"
        case qemus = "QEMU CPU s"
        case wrong = "pages wrong"

        public func value(_ outcome: Outcome) -> Double? {
            switch self {
            case .total: outcome.totalMs.map { $0 / 1000 }
            case .move: outcome.moveMs.map { $0 / 1000 }
            case .wire: outcome.wireBytes.map { Double($0) / 1e6 }
            case .downtime: outcome.pause?.downtimeMs
            case .reported: outcome.reportedDowntimeMs
            case .running: outcome.pause?.switchRunMs
            case .rounds: outcome.rounds.map(Double.init)
            case .later: outcome.bytesAfterRound1.map { Double($0) / 1e6 }
            case .work: outcome.speedBefore.flatMap { $0 > 0 ? $0 : nil }
            case .speed: share(outcome.speedDuring, of: outcome.speedBefore)
            case .speedAfter: share(outcome.speedAfter, of: outcome.speedBefore)
            case .speedPulling: share(outcome.speedPulling, of: outcome.speedBefore)
            case .recovery: outcome.recoveryMs
            case .speedRecording: share(outcome.speedRecording, of: outcome.speedBefore)
            case .faults: (outcome.pull?.faults ?? outcome.pageRequests).map { Double($0) }
            case .coverage: outcome.pull?.coverage.map { $0 * 100 }
            case .accuracy: outcome.pull?.accuracy.map { $0 * 100 }
            case .faultP50: outcome.pull.map { $0.faultP50Us / 1000 }
            case .faultP99: outcome.pull.map { $0.faultP99Us / 1000 }
            case .recording: outcome.pull?.prefetch.flatMap { $0.recordMs > 0 ? $0.recordingShare * 100 : nil }
            case .stall: outcome.pull.map(\.stallMs)
            case .agents: sum(outcome.agentCPUSource, outcome.agentCPUDestination)
            case .qemus: sum(outcome.qemuCPUSource, outcome.qemuCPUDestination)
            case .wrong: outcome.failure == nil ? Double(outcome.pagesWrong) : nil
            }
        }

        /// In per cent; nil for a guest that did nothing before.
        private func share(_ part: Double?, of whole: Double?) -> Double? {
            if let part, let whole, whole > 0 { part / whole * 100 } else { nil }
        }

        private func sum(_ left: Double?, _ right: Double?) -> Double? {
            if let left, let right { left + right } else { nil }
        }
    }

    /// One workload on one link: what the peers are compared within.
    public struct Group: Sendable {
        public let workload: String
        public let rate: UInt64?
        public let rttMs: Double?
        public let lines: [Line]
        public var title: String { "\(workload), \(linkName(rate, rttMs: rttMs))" }
    }
    public struct Line: Sendable {
        public let peer: String
        public let outcomes: [Outcome]
        public func spread(_ measure: Measure) -> Spread? { Spread(outcomes.compactMap(measure.value)) }
        public var failures: Int { outcomes.count { $0.failure != nil } }
        public var isOurs: Bool { peer.hasPrefix("apus") }
    }

    /// Apus first, then the peers by name, in the order of workloads and links as measured.
    public var groups: [Group] {
        var firsts: [Outcome] = []
        for outcome in outcomes where !firsts.contains(where: outcome.isComparable(to:)) { firsts.append(outcome) }
        return firsts.map { first in
            let here = outcomes.filter(first.isComparable(to:))
            let lines = Set(here.map(\.peer)).sorted().map { peer in
                Line(peer: peer, outcomes: here.filter { $0.peer == peer })
            }
            return Group(
                workload: first.workload, rate: first.rate, rttMs: first.rttMs,
                lines: lines.filter(\.isOurs) + lines.filter { !$0.isOurs })
        }
    }

    /// `median of 5 runs`
    var repetition: String {
        let runs = groups.flatMap(\.lines).map(\.outcomes.count).max() ?? 0
        return "median of \(runs) run\(runs == 1 ? "" : "s")"
    }

    public func json() throws -> Data {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
        return try encoder.encode(self)
    }
}

extension Report.Line {
    /// Median, and range if it is asked for; `-` when there is nothing.
    func cell(_ measure: Report.Measure, withRange: Bool) -> String {
        guard let spread = spread(measure) else { return "-" }
        let isCount = measure == .rounds || measure == .wrong
        let median = isCount ? brief(spread.median).trimmingZeros() : brief(spread.median)
        return withRange && !isCount ? spread.text : median
    }
}

extension Report {
    /// One table for all, for the terminal: medians only.
    public func plainTable(_ measures: [Measure]) -> String {
        var table = Table(["workload, link", "peer"] + measures.map(\.rawValue) + ["failed"])
        for group in groups {
            for line in group.lines {
                table.rows.append(
                    [group.title, line.peer] + measures.map { line.cell($0, withRange: false) } + ["\(line.failures)"])
            }
        }
        return table.plain
    }

    /// One table per workload and link, medians with ranges.
    public func markdown(_ measures: [Measure]) -> String {
        var text = "Measured \(date) on \(machine); guests under \(accelerator.rawValue.uppercased()). "
        text += "Medians (least-most) of the runs.\n"
        for group in groups {
            var table = Table(["peer"] + measures.map(\.rawValue))
            for line in group.lines {
                let failed = line.failures > 0 ? " (\(line.failures) of \(line.outcomes.count) failed)" : ""
                table.rows.append([line.peer + failed] + measures.map { line.cell($0, withRange: true) })
            }
            text += "\n**\(group.title)**\n\n\(table.markdown)\n"
        }
        return text
    }
}
