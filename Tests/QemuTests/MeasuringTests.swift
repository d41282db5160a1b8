import ApusAPI
import Foundation
import Testing

@testable import ApusLab

@Suite struct JobHistoryTests {
    private func update(
        _ phase: JobPhase, round: Int, wire: UInt64, remaining: UInt64 = 0, total: UInt64? = nil
    ) throws -> String {
        var progress = JobProgress()
        progress.round = round
        progress.wireBytes = wire
        progress.memoryRemainingBytes = remaining
        var job = JobStatus(
            id: "1", direction: .outgoing, vm: "a", peer: "b", phase: phase, startedAt: .distantPast,
            maxDowntimeMs: 300, progress: progress)
        if let total {
            var summary = JobSummary()
            summary.wireBytes = total
            job.summary = summary
        }
        return String(decoding: try APICoding.encoder().encode(job), as: UTF8.self).replacing("\n", with: "")
    }

    private func lines() throws -> [String] {
        [
            try update(.preparing, round: 0, wire: 0), try update(.transferring, round: 1, wire: 600, remaining: 90),
            try update(.transferring, round: 1, wire: 700, remaining: 20),
            try update(.transferring, round: 2, wire: 750),
            try update(.switching, round: 3, wire: 900), try update(.completed, round: 3, wire: 1000, total: 1000),
        ]
    }

    @Test func takesTheLastUpdateOfRound1() throws {
        let history = try JobHistory(lines: lines().joined(separator: "\n") + "\n")
        #expect(history.job.phase == .completed)
        #expect(history.bytesAfterRound1 == 300)
    }

    /// QEMU in its last round answers nobody: bytes grow, its round and remaining memory stay as they were.
    @Test func takesRepetitionsForNoNews() throws {
        var lines = try lines()
        lines[3...4] = [
            try update(.transferring, round: 1, wire: 900, remaining: 20),
            try update(.switching, round: 1, wire: 1000, remaining: 20),
        ]
        #expect(try JobHistory(lines: lines.joined(separator: "\n")).bytesAfterRound1 == 300)
    }

    @Test func prefersTheAgentsOwnCount() throws {
        var lines = try lines()
        lines[5] = lines[5].replacing(#""summary":{"#, with: #""summary":{"firstRoundBytes":740,"#)
        try #require(lines[5].contains("firstRoundBytes"))
        #expect(try JobHistory(lines: lines.joined(separator: "\n")).bytesAfterRound1 == 260)
    }

    @Test func saysNothingOfAJobThatFailedOrToldOnlyItsEnd() throws {
        let failed = try lines().dropLast() + [try update(.failed, round: 2, wire: 800, total: 800)]
        #expect(try JobHistory(lines: failed.joined(separator: "\n")).bytesAfterRound1 == nil)
        #expect(try JobHistory(lines: lines().suffix(1).joined()).bytesAfterRound1 == nil)
        #expect(throws: LabError.notEnough(what: "output of `apus migrate --json`")) { try JobHistory(lines: "\n") }
    }
}

@Suite struct WireProbeTests {
    /// As /proc/net/dev of a 6.18 kernel says it.
    private let interfaces = """
        Inter-|   Receive                                                |  Transmit
         face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
            lo:     100       1    0    0    0     0          0         0     2000       1    0    0    0     0       0          0
         wire0: 3000000 2184 0 0 0 0 0 0 40000000000 29 0 0 0 0 0 0
        """
    private let sockets = """
          sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
           0: 00000000:8B83 00000000:0000 0A 00000007:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
           1: 0100000A:C4F2 0200000A:8B83 01 0000FF00:00000000 01:00000014 00000000     0        0 2 2 0 20 4 24 10 -1
           2: 0100000A:C4F4 0200000A:8B83 01 00000100:00000000 01:00000014 00000000     0        0 3 2 0 20 4 24 10 -1
        """

    @Test func countsWhatTheInterfaceCarried() {
        #expect(WireProbe.carried(by: "wire0", in: interfaces) == 40_003_000_000)
        #expect(WireProbe.carried(by: "wire1", in: interfaces) == nil)
        #expect(WireProbe.carried(by: "wire0", in: "") == nil)
    }

    @Test func countsWhatOpenConnectionsStillHold() {
        #expect(WireProbe.unconfirmed(in: sockets) == 0x10000)
        #expect(WireProbe.unconfirmed(in: "nonsense") == 0)
    }

    @Test func asksARealProcess() {
        #expect(WireProbe(pid: getpid(), device: "lo").handedOver() != nil)
        #expect(WireProbe(pid: getpid(), device: "none").handedOver() == nil)
    }
}

@Suite struct SpeedTests {
    private let origin = ContinuousClock.now

    /// Ticks every 100 ms with this work in between.
    private func trace(from start: Int, to end: Int, first: UInt64, workPerS: Int) -> ConsoleTrace {
        var trace = ConsoleTrace()
        for (index, ms) in stride(from: start, through: end, by: 100).enumerated() {
            let line = "T \(first + UInt64(index)) 0 \(ms * workPerS / 1000)\n"
            trace.feed(line.utf8, arrived: origin + .milliseconds(ms))
        }
        return trace
    }

    private func outcome(_ source: ConsoleTrace, _ destination: ConsoleTrace) -> Outcome {
        var outcome = Outcome(peer: "apus", workload: "few", rate: nil)
        outcome.take(
            source: source, destination: destination, asked: origin + .seconds(2), moving: origin + .seconds(3),
            ended: origin + .seconds(5))
        return outcome
    }

    @Test func comparesBeforeDuringAndAfter() throws {
        var source = trace(from: 0, to: 2000, first: 1, workPerS: 1000)
        // Twice as slow while it moves: 1000 steps a second before, 500 from 3 s to 5 s.
        for (index, ms) in stride(from: 3000, through: 4900, by: 100).enumerated() {
            let line = "T \(22 + index) 0 \(3000 + (ms - 3000) / 2)\n"
            source.feed(line.utf8, arrived: origin + .milliseconds(ms))
        }
        let outcome = outcome(source, trace(from: 5100, to: 8000, first: 60, workPerS: 900))
        #expect(Report.Measure.work.value(outcome).map { Int($0.rounded()) } == 1000)
        #expect(Report.Measure.speed.value(outcome).map { Int($0.rounded()) } == 50)
        #expect(Report.Measure.speedAfter.value(outcome).map { Int($0.rounded()) } == 90)
    }

    @Test func anIdleGuestHasNoSpeed() {
        let outcome = outcome(
            trace(from: 0, to: 4900, first: 1, workPerS: 0), trace(from: 5100, to: 8000, first: 60, workPerS: 0))
        #expect(outcome.speedBefore == 0)
        for measure in [Report.Measure.work, .speed, .speedAfter] { #expect(measure.value(outcome) == nil) }
    }
}

@Suite struct LinesSweepTests {
    private func outcome(_ peer: String, _ workload: String, _ rate: UInt64, megabytes: UInt64) -> Outcome {
        var outcome = Outcome(peer: peer, workload: workload, rate: rate)
        outcome.bytesAfterRound1 = megabytes * 1_000_000
        return outcome
    }

    private var sweep: LinesSweep {
        let fast: UInt64 = 1_000_000_000
        var outcomes = [64, 2, 1].map { outcome("apus-dsm-direct", "lines-\($0)", fast, megabytes: UInt64($0)) }
        outcomes += [1, 64].map { outcome("a plain one", "lines-\($0)", fast, megabytes: 50) }
        outcomes += [outcome("a plain one", "lines-1", fast, megabytes: 70), outcome("x", "few", fast, megabytes: 9)]
        outcomes.append(outcome("a plain one", "lines-1", 100_000_000, megabytes: 0))
        return LinesSweep(Report(machine: "2 cores", date: "2026-01-01", accelerator: .tcg, outcomes: outcomes))
    }

    @Test func ordersPointsByLinesAndOursFirst() {
        let curves = sweep.curves(.later, rate: 1_000_000_000)
        #expect(curves.map(\.peer) == ["apus-dsm-direct", "a plain one"])
        #expect(curves[0].points.map(\.lines) == [1, 2, 64])
        #expect(curves[1].points.map(\.spread.median) == [60, 50])
        #expect(sweep.curves(.downtime, rate: 1_000_000_000).isEmpty)
    }

    @Test func writesATableForEachLinkAndMeasure() {
        let text = sweep.markdown
        #expect(text.contains("**1 Gb/s: MB after round 1**"))
        #expect(text.contains("**100 Mb/s: MB after round 1**"))
        #expect(text.contains("| changed lines per page |                1 |    2 |   64 |"))
        #expect(text.contains("| a plain one            | 60.0 (50.0-70.0) |    - | 50.0 |"))
    }

    @Test func drawsEveryPointInsideItsPage() throws {
        let svg = sweep.svg
        #expect(svg.hasPrefix("<svg ") && svg.hasSuffix("</svg>\n"))
        #expect(svg.count { $0 == "<" } == svg.count { $0 == ">" })
        #expect(svg.components(separatedBy: "<circle ").count - 1 == 3 + 2 + 1)
        #expect(!svg.contains("nan") && !svg.contains("inf"))
        // A power of ten more is a fixed step up: 0.1 is the lowest there is, also for 0 bytes.
        let heights = svg.matches(of: /cy="([0-9.]+)"/).compactMap { Double($0.1) }
        #expect(heights.count == 6 && heights.allSatisfy { $0 > 66 && $0 < 66 + 2 * CurvePanel.height })
        #expect(heights[0] > heights[1] && heights[1] > heights[2], "more bytes are higher up")
    }
}
