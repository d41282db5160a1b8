import ApusAPI
import ApusLab
import Foundation
import Testing

@Suite struct ReportTests {
    private func outcome(_ peer: String, seconds: Double, run: Int) -> Outcome {
        var outcome = Outcome(peer: peer, workload: "few", rate: 1_000_000_000)
        outcome.run = run
        outcome.totalMs = seconds * 1000
        outcome.prepareMs = 100
        outcome.wireBytes = UInt64(seconds * 1e8)
        outcome.rounds = 3
        return outcome
    }

    private var report: Report {
        var outcomes = [3.0, 1.0, 2.0].enumerated().flatMap { run, seconds in
            [
                outcome("qemu7.2 plain", seconds: seconds * 2, run: run + 1),
                outcome("apus", seconds: seconds, run: run + 1),
            ]
        }
        var failed = Outcome(peer: "qemu7.2 xbzrle", workload: "few", rate: 1_000_000_000)
        failed.failure = "a < b & c"
        outcomes.append(failed)
        return Report(machine: "2 cores", date: "2026-01-01", accelerator: .tcg, outcomes: outcomes)
    }

    @Test func takesMediansAndRanges() throws {
        let group = try #require(report.groups.first)
        #expect(group.title == "few, 1 Gb/s")
        #expect(group.lines.map(\.peer) == ["apus", "qemu7.2 plain", "qemu7.2 xbzrle"])
        #expect(group.lines[0].spread(.total)?.median == 2)
        #expect(group.lines[0].spread(.total)?.most == 3)
        #expect(group.lines[2].spread(.total) == nil)
        #expect(group.lines[2].failures == 1)
        #expect(Spread([4, 1, 3, 2])?.median == 2.5)
        #expect(Spread([]) == nil)
    }

    /// QEMU's own post-copy says how many pages it asked for, Apus how long each took.
    @Test func faultsAreOfEitherMover() throws {
        var (ours, theirs) = (outcome("apus", seconds: 1, run: 1), outcome("qemu7.2 postcopy", seconds: 1, run: 1))
        #expect(Report.Measure.faults.value(ours) == nil)
        var pull = PullSummary(
            missingPages: 100, faultedPages: 3, pushedPages: 97, faults: 3, faultP50Us: 1, faultP99Us: 1, faultMaxUs: 1,
            stallMs: 1, wholeMs: 1)
        (pull.usedPages, pull.foreseenPages, pull.foreseenUsedPages) = (9, 20, 5)
        ours.pull = pull
        theirs.pageRequests = 7
        #expect(Report.Measure.faults.value(ours) == 3 && Report.Measure.faults.value(theirs) == 7)
        #expect(Report.Measure.coverage.value(ours) == 75 && Report.Measure.accuracy.value(ours) == 25)
        #expect(Report.Measure.coverage.value(theirs) == nil)
    }

    @Test func survivesJSON() throws {
        #expect(try JSONDecoder().decode(Report.self, from: report.json()) == report)
    }

    @Test func writesMarkdown() {
        let text = report.markdown([.total, .rounds])
        #expect(text.contains("| peer                           |          total s | rounds |"))
        #expect(text.contains("| apus                           | 2.00 (1.00-3.00) |      3 |"))
        #expect(text.contains("| qemu7.2 xbzrle (1 of 1 failed) |"))
    }

    @Test func writesPlainTables() {
        var table = Table(["peer", "s"])
        table.rows = [["apus", "1.0"], ["q", "12.0"]]
        #expect(table.plain == "peer     s\n----  ----\napus   1.0\nq     12.0")
    }

    @Test func drawsAWellFormedChart() throws {
        let svg = Chart(report, title: "a < b & c").svg
        #expect(svg.hasPrefix("<svg ") && svg.hasSuffix("</svg>\n"))
        #expect(svg.contains("a &lt; b &amp; c"))
        #expect(svg.count { $0 == "<" } == svg.count { $0 == ">" })
        // Two peers with three measures each; the third has no value to draw, and no measure but the first two is there.
        #expect(svg.components(separatedBy: "<rect x=").count - 1 == 4)
        #expect(svg.contains(">failed<"))
    }

    /// `apus-direct` and `apus` before QEMU, whatever their letters.
    @Test func ourPeersComeFirst() {
        var report = report
        report.outcomes += [outcome("apus-dsm-direct", seconds: 1, run: 1), outcome("a", seconds: 1, run: 1)]
        let peers = report.groups[0].lines.map(\.peer)
        #expect(peers == ["apus", "apus-dsm-direct", "a", "qemu7.2 plain", "qemu7.2 xbzrle"])
    }

    @Test(arguments: [
        (0.0, "0.00"), (0.126, "0.13"), (9.996, "10.00"), (12.34, "12.3"), (99.96, "100.0"), (123.4, "123"),
        (-1.5, "-1.50"),
    ])
    func roundsForPeople(_ value: Double, _ text: String) { #expect(brief(value) == text) }

    @Test func namesRates() {
        #expect(rate(named: "1G") == .some(1_000_000_000))
        #expect(rate(named: "2.5M") == .some(2_500_000))
        #expect(rate(named: "none") == .some(nil))
        #expect(rate(named: "fast") == nil)
        #expect(rateName(1_000_000_000) == "1 Gb/s")
        #expect(rateName(100_000_000) == "100 Mb/s")
        #expect(rateName(nil) == "unshaped")
    }

    /// What disturbs the machine for a while must disturb all peers.
    @Test func interleavesPeersAndTurnsTheirOrder() {
        let peers = [PlainQemu.Mode.plain, .xbzrle].map { Peer.qemu(PlainQemu(program: "q", version: "7.2", mode: $0)) }
        let matrix = Matrix(workloads: Array(Workload.standard.prefix(2)), rates: [nil], peers: peers, runs: 2)
        let order = matrix.cells.map { "\($0.run) \($0.workload.name) \($0.peer.label)" }
        #expect(
            order == [
                "1 incompressible qemu7.2 plain", "1 incompressible qemu7.2 xbzrle", "1 compressible qemu7.2 plain",
                "1 compressible qemu7.2 xbzrle", "2 incompressible qemu7.2 xbzrle", "2 incompressible qemu7.2 plain",
                "2 compressible qemu7.2 xbzrle", "2 compressible qemu7.2 plain",
            ])
    }
}
