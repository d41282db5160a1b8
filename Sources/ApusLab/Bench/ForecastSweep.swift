internal import ApusAPI

/// Forecasts of a report held against what then was, guest by guest, and plain QEMU beside it.
public struct ForecastSweep: Sendable {
    public let report: Report

    public init(_ report: Report) { self.report = report }

    /// A guest that rewrites whole incompressible pages of its hot part, as many as this share of the link carries.
    public static func guest(hotMiB: Int, share: Double, bitsPerS: UInt64) -> Workload {
        var workload = Workload(
            name: "hot \(hotMiB) MiB, \(brief(share).trimmingZeros()) of the link", pattern: .incompressible)
        workload.hotMiB = hotMiB
        workload.regionMiB = hotMiB + 16
        workload.pagesPerS = max(1, Int(share * Double(bitsPerS) / 8 / 4096))
        return workload
    }

    /// Who comes to an end, how near the forecasts came, and every guest.
    public var markdown: String {
        var table = Table([
            "guest", "link", "mover", "total s", "foretold", "MB", "foretold", "pause ms (guest)", "reported",
            "foretold",
            "at the gate", "wrong pages",
        ])
        table.rows = report.outcomes.map { outcome in
            let (start, gate) = (outcome.forecast?.atStart, outcome.forecast?.atGate)
            func text(_ value: Double?, _ scale: Double = 1) -> String { value.map { brief($0 / scale) } ?? "-" }
            return [
                outcome.workload, rateName(outcome.rate), outcome.peer,
                outcome.failure.map { "no end: \($0.prefix(40))" } ?? text(outcome.totalMs, 1000),
                text(start?.totalMs, 1000), text(outcome.wireBytes.map { Double($0) }, 1e6),
                text(start?.wireBytes, 1e6),
                text(outcome.pause?.downtimeMs), text(outcome.reportedDowntimeMs), text(start?.downtimeMs),
                text(gate?.downtimeMs), "\(outcome.pagesWrong)",
            ]
        }
        return [endings, errors, table.markdown].map { $0 + "\n" }.joined(separator: "\n")
    }

    /// Who comes to an end, by how much the guest writes.
    private var endings: String {
        var table = Table([
            "writes, of the link", "link", "mover", "moved", "total s", "pause ms (guest)", "longest pause (reported)",
        ])
        // `hot 8 MiB, 0.3 of the link`: the size is left out.
        func share(_ outcome: Outcome) -> String {
            outcome.workload.split(separator: ", ").last.map { String($0.replacing(" of the link", with: "")) } ?? ""
        }
        var done: Set<[String]> = []
        for first in report.outcomes {
            let key = [share(first), rateName(first.rate), first.peer]
            guard done.insert(key).inserted else { continue }
            let all = report.outcomes.filter { share($0) == key[0] && $0.rate == first.rate && $0.peer == first.peer }
            let moved = all.filter { $0.failure == nil }
            func text(_ values: [Double?]) -> String { Spread(values.compactMap(\.self))?.text ?? "-" }
            let longest = moved.compactMap(\.reportedDowntimeMs).max()
            table.rows.append(
                key + [
                    "\(moved.count) of \(all.count)", text(moved.map { $0.totalMs.map { $0 / 1000 } }),
                    text(moved.map { $0.pause?.downtimeMs }), longest.map(brief) ?? "-",
                ])
        }
        return table.markdown
    }

    private var errors: String {
        let accuracy = AccuracyReport(report.outcomes.compactMap(\.forecast))
        var table = Table(["error: median, 90th percentile", "migrations", "total", "bytes", "pause"])
        for (name, errors) in [("at the start", accuracy.atStart), ("at the gate", accuracy.atGate)] {
            guard let errors else { continue }
            table.rows.append(
                [name, "\(errors.migrations)"]
                    + [errors.totalMs, errors.wireBytes, errors.downtimeMs].map {
                        "\(brief($0.median * 100)) %, \(brief($0.p90 * 100)) %"
                    })
        }
        return table.markdown
    }
}
