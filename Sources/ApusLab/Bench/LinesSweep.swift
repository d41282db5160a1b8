/// What changed lines per page cost: the workloads `lines-N` of a report, as a table and as a picture.
///
/// ```
///   title
///   1 Gb/s: downtime ms (guest)          1 Gb/s: MB after round 1
///   100 |            __--o  plain        100 |        ___--o
///    10 |  ___---o---                     10 |   _-o--
///     1 +--------------------              1 +--------------------
///       1  2  4  8 16 32 64 lines            1  2  4  8 16 32 64 lines
/// ```
/// Both axes are logarithmic; a point is the median, the thin line through it the range.
public struct LinesSweep: Sendable {
    public static let lines = [1, 2, 4, 8, 16, 32, 64]
    public static let measures: [Report.Measure] = [.downtime, .later]

    struct Point: Equatable {
        let lines: Int
        let spread: Spread
    }
    struct Curve {
        let peer: String
        let points: [Point]
    }

    public let report: Report

    public init(_ report: Report) { self.report = report }

    private var rates: [UInt64?] {
        report.outcomes.reduce(into: []) { rates, outcome in
            if !rates.contains(outcome.rate) { rates.append(outcome.rate) }
        }
    }

    /// One for each peer that has a value, ours first.
    func curves(_ measure: Report.Measure, rate: UInt64?) -> [Curve] {
        var points: [String: [Point]] = [:]
        var peers: [String] = []
        for group in report.groups where group.rate == rate {
            guard let workload = Workload.named(group.workload), group.workload.hasPrefix("lines-") else { continue }
            for line in group.lines {
                guard let spread = line.spread(measure) else { continue }
                if points[line.peer] == nil { peers.append(line.peer) }
                points[line.peer, default: []].append(Point(lines: workload.lines, spread: spread))
            }
        }
        return peers.map { Curve(peer: $0, points: (points[$0] ?? []).sorted { $0.lines < $1.lines }) }
    }

    /// A table for each link and measure: a row per peer, a column per count of lines.
    public var markdown: String {
        var text = ""
        for rate in rates {
            for measure in Self.measures {
                let curves = curves(measure, rate: rate)
                let counts = Set(curves.flatMap { $0.points.map(\.lines) }).sorted()
                var table = Table(["changed lines per page"] + counts.map(String.init))
                table.rows = curves.map { curve in
                    [curve.peer] + counts.map { count in curve.points.first { $0.lines == count }?.spread.text ?? "-" }
                }
                text += "\n**\(rateName(rate)): \(measure.rawValue)**\n\n\(table.markdown)\n"
            }
        }
        return text
    }

    public var svg: String {
        var body = "", top = 66.0
        for rate in rates {
            for (column, measure) in Self.measures.enumerated() {
                let panel = CurvePanel(
                    title: "\(rateName(rate)): \(measure.rawValue)", curves: curves(measure, rate: rate),
                    left: Double(column) * CurvePanel.width, top: top)
                body += panel.svg
            }
            top += CurvePanel.height
        }
        return SVG.page(
            width: Double(Self.measures.count) * CurvePanel.width, height: top,
            title: "What changed lines per page cost", subtitle: subtitle, body: body)
    }

    private var subtitle: String {
        "10,000 page writes/s, hot 64 MiB; \(report.repetition), thin line: least to most; "
            + "both axes logarithmic; \(report.machine), \(report.date)"
    }
}
