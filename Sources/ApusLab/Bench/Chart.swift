/// The report as an SVG picture: one row per workload and link, one column per measure, a bar per peer.
///
/// ```
///   title
///                 total s             wire MB            downtime ms
///   idle, 1 Gb/s  apus  ###|- 1.2     apus  ## 60        apus  # 9
///                 plain ####|-- 1.9   plain ##### 140    plain ##### 48
/// ```
/// A bar is the median, the thin line over its end the range. Bars of one measure in one row share a scale.
public struct Chart: Sendable {
    public let report: Report
    public let measures: [Report.Measure]
    public let title: String

    public init(_ report: Report, measures: [Report.Measure] = [.total, .wire, .downtime], title: String) {
        self.report = report
        self.measures = measures
        self.title = title
    }

    private static let labelWidth = 190
    private static let nameWidth = 140
    private static let barWidth = 190
    private static let numberWidth = 56
    private static let columnWidth = nameWidth + barWidth + numberWidth
    private static let barHeight = 13
    private static let barStep = 18
    private static let headHeight = 74
    /// Ours stands out; the others are told apart by their names.
    private static let ours = "#c2410c"
    private static let others = ["#64748b", "#94a3b8", "#475569", "#a1b0c3"]

    public var svg: String {
        var body = ""
        var top = Self.headHeight
        for group in report.groups {
            body += row(group, top: top)
            top += group.lines.count * Self.barStep + 26
        }
        let width = Self.labelWidth + measures.count * Self.columnWidth + 20
        return """
            <svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 \(width) \(top + 10)" width="\(width)" \
            height="\(top + 10)" font-family="DejaVu Sans, Helvetica, Arial, sans-serif" font-size="11">
            <rect width="100%" height="100%" fill="#ffffff"/>
            <text x="14" y="26" font-size="16" font-weight="bold" fill="#0f172a">\(Self.escaped(title))</text>
            <text x="14" y="44" fill="#475569">\(Self.escaped(subtitle))</text>
            \(heads)\(body)</svg>

            """
    }

    private var subtitle: String {
        let runs = report.groups.flatMap(\.lines).map(\.outcomes.count).max() ?? 0
        return "median of \(runs) run\(runs == 1 ? "" : "s"), thin line: least to most; shorter is better; "
            + "\(report.machine), \(report.date)"
    }

    private var heads: String {
        measures.enumerated().map { column, measure in
            let x = Self.labelWidth + column * Self.columnWidth + Self.nameWidth
            return
                "<text x=\"\(x)\" y=\"66\" font-weight=\"bold\" fill=\"#0f172a\">\(Self.escaped(measure.rawValue))</text>\n"
        }.joined()
    }

    private func row(_ group: Report.Group, top: Int) -> String {
        var text =
            "<text x=\"14\" y=\"\(top + 11)\" font-weight=\"bold\" fill=\"#0f172a\">\(Self.escaped(group.title))</text>\n"
        for (column, measure) in measures.enumerated() {
            let left = Self.labelWidth + column * Self.columnWidth
            let longest = group.lines.compactMap { $0.spread(measure)?.most }.max() ?? 0
            for (index, line) in group.lines.enumerated() {
                text += bar(
                    line, measure, colour: Self.colour(line.peer, index), left: left, top: top + index * Self.barStep,
                    longest: longest)
            }
        }
        return text
    }

    private func bar(
        _ line: Report.Line, _ measure: Report.Measure, colour: String, left: Int, top: Int, longest: Double
    ) -> String {
        let x = left + Self.nameWidth, middle = Double(top) + Double(Self.barHeight) / 2
        var text =
            "<text x=\"\(x - 6)\" y=\"\(top + 10)\" text-anchor=\"end\" fill=\"#334155\">\(Self.escaped(line.peer))</text>\n"
        guard let spread = line.spread(measure), longest > 0 else {
            return text
                + "<text x=\"\(x + 2)\" y=\"\(top + 10)\" fill=\"#94a3b8\">\(line.failures > 0 ? "failed" : "-")</text>\n"
        }
        func length(_ value: Double) -> Double { (value / longest * Double(Self.barWidth) * 10).rounded() / 10 }
        text +=
            "<rect x=\"\(x)\" y=\"\(top)\" width=\"\(length(spread.median))\" height=\"\(Self.barHeight)\" fill=\"\(colour)\"/>\n"
        if spread.most > spread.least {
            let from = Double(x) + length(spread.least), to = Double(x) + length(spread.most)
            text +=
                "<line x1=\"\(from)\" y1=\"\(middle)\" x2=\"\(to)\" y2=\"\(middle)\" stroke=\"#0f172a\" stroke-width=\"1.2\"/>\n"
        }
        let after = Double(x) + length(max(spread.median, spread.most)) + 5
        let failed = line.failures > 0 ? " (\(line.failures) failed)" : ""
        return text
            + "<text x=\"\(after)\" y=\"\(top + 10)\" fill=\"#0f172a\">\(brief(spread.median))\(failed)</text>\n"
    }

    private static func colour(_ peer: String, _ index: Int) -> String {
        peer == "apus" ? ours : others[index % others.count]
    }

    private static func escaped(_ text: String) -> String {
        text.replacing("&", with: "&amp;").replacing("<", with: "&lt;").replacing(">", with: "&gt;")
    }
}
