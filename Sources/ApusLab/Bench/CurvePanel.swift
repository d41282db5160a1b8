internal import Foundation

/// One pair of logarithmic axes with its curves and their names.
struct CurvePanel {
    let title: String
    let curves: [LinesSweep.Curve]
    let left: Double
    let top: Double

    static let width = 560.0
    static let height = 330.0
    private static let plot = (left: 50.0, width: 330.0, top: 24.0, height: 250.0)
    /// Below it everything is drawn as this: a logarithm has no zero.
    private static let least = 0.1
    private static let warm = ["#c2410c", "#ea9a5b", "#7c2d12", "#facc15"]
    private static let cold = ["#475569", "#0284c7", "#16a34a", "#9333ea"]

    var svg: String {
        var body = SVG.text(title, left + 14, top + 12, weight: "bold") + grid
        var ours = 0, others = 0
        for (index, curve) in curves.enumerated() {
            let isOurs = curve.peer.hasPrefix("apus")
            let colour = isOurs ? Self.warm[ours % Self.warm.count] : Self.cold[others % Self.cold.count]
            if isOurs { ours += 1 } else { others += 1 }
            body += drawing(curve, colour)
            let name = top + Self.plot.top + 12 + Double(index) * 16
            body += SVG.text(
                curve.peer, left + Self.plot.left + Self.plot.width + 12, name, weight: "bold", fill: colour)
        }
        return body
    }

    /// Powers of ten that hold all values.
    private var decades: ClosedRange<Int> {
        let values = curves.flatMap(\.points).flatMap { [$0.spread.least, $0.spread.most] }.map { max($0, Self.least) }
        let low = Int(log10(values.min() ?? 1).rounded(.down))
        return low...max(low + 1, Int(log10(values.max() ?? 1).rounded(.up)))
    }

    private func y(_ value: Double) -> Double {
        let height = log10(max(value, Self.least)) - Double(decades.lowerBound)
        return tenth(top + Self.plot.top + Self.plot.height * (1 - height / Double(decades.count - 1)))
    }

    private func x(_ lines: Int) -> Double { tenth(left + Self.plot.left + Self.plot.width * log2(Double(lines)) / 6) }

    private func tenth(_ value: Double) -> Double { (value * 10).rounded() / 10 }

    private var grid: String {
        var body = ""
        for decade in decades {
            let value = pow(10, Double(decade))
            body += SVG.line((x(1), y(value)), (x(64), y(value)), stroke: "#e2e8f0", width: 1)
            body += SVG.text(brief(value).trimmingZeros(), x(1) - 8, y(value) + 4, fill: SVG.pale, anchor: "end")
        }
        let foot = top + Self.plot.top + Self.plot.height + 16
        for lines in LinesSweep.lines { body += SVG.text("\(lines)", x(lines), foot, fill: SVG.pale, anchor: "middle") }
        return body + SVG.text("changed lines of 64 bytes per page", x(8), foot + 18, fill: SVG.pale, anchor: "middle")
    }

    private func drawing(_ curve: LinesSweep.Curve, _ colour: String) -> String {
        let path = curve.points.map { "\(x($0.lines)),\(y($0.spread.median))" }.joined(separator: " ")
        var body = "<polyline points=\"\(path)\" fill=\"none\" stroke=\"\(colour)\" stroke-width=\"2\"/>\n"
        for point in curve.points {
            let place = x(point.lines), spread = point.spread
            body += "<circle cx=\"\(place)\" cy=\"\(y(spread.median))\" r=\"3\" fill=\"\(colour)\"/>\n"
            if spread.most > spread.least {
                body += SVG.line((place, y(spread.least)), (place, y(spread.most)), stroke: colour)
            }
        }
        return body
    }
}
