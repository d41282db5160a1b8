/// The report as an SVG picture: a block per workload and link, a line per peer, a column of bars per measure.
///
/// ```
///   title
///                      total s          wire MB          downtime ms
///   idle, 1 Gb/s
///     apus             ##|- 1.2         ### 60           # 9
///     qemu7.2 plain    ####|-- 1.9      ###### 140       ##### 48
/// ```
/// A bar is the median, the thin line over its end the range. Bars of one measure in one block share a scale.
public struct Chart: Sendable {
    public let report: Report
    public let measures: [Report.Measure]
    public let title: String

    public init(_ report: Report, measures: [Report.Measure] = [.total, .wire, .downtime], title: String) {
        self.report = report
        self.measures = measures
        self.title = title
    }

    private static let namesWidth = 200.0
    private static let barWidth = 210.0
    private static let columnWidth = barWidth + 80
    private static let barHeight = 13.0
    private static let lineStep = 18.0
    private static let headHeight = 76.0

    public var svg: String {
        var top = Self.headHeight
        var body = ""
        for group in report.groups {
            body += block(group, top: top)
            top += Double(group.lines.count + 1) * Self.lineStep + 12
        }
        let width = Self.namesWidth + Double(measures.count) * Self.columnWidth
        return SVG.page(width: width, height: top, title: title, subtitle: subtitle, body: heads + body)
    }

    private var subtitle: String {
        "\(report.repetition), thin line: least to most; shorter is better; \(report.machine), \(report.date)"
    }

    private func left(of column: Int) -> Double { Self.namesWidth + Double(column) * Self.columnWidth }

    private var heads: String {
        measures.enumerated().map { SVG.text($1.rawValue, left(of: $0), 66, weight: "bold") }.joined()
    }

    private func block(_ group: Report.Group, top: Double) -> String {
        var body = SVG.text(group.title, 14, top + 10, weight: "bold")
        for (index, line) in group.lines.enumerated() {
            let y = top + Double(index + 1) * Self.lineStep
            body += SVG.text(line.peer, 26, y + 10, fill: SVG.pale)
            for (column, measure) in measures.enumerated() {
                let longest = group.lines.compactMap { $0.spread(measure)?.most }.max() ?? 0
                body += bar(line, measure, x: left(of: column), y: y, longest: longest)
            }
        }
        return body
    }

    private func bar(_ line: Report.Line, _ measure: Report.Measure, x: Double, y: Double, longest: Double) -> String {
        guard let spread = line.spread(measure), longest > 0 else {
            return SVG.text(line.failures > 0 ? "failed" : "-", x + 2, y + 10, fill: SVG.others)
        }
        func end(_ value: Double) -> Double { x + (value / longest * Self.barWidth * 10).rounded() / 10 }
        let fill = line.isOurs ? SVG.ours : SVG.others
        var body = """
            <rect x="\(x)" y="\(y)" width="\(end(spread.median) - x)" height="\(Self.barHeight)" fill="\(fill)"/>

            """
        if spread.most > spread.least {
            let middle = y + Self.barHeight / 2
            body += SVG.line((end(spread.least), middle), (end(spread.most), middle))
        }
        let failed = line.failures > 0 ? " (\(line.failures) failed)" : ""
        return body + SVG.text(brief(spread.median) + failed, end(spread.most) + 5, y + 10)
    }
}
