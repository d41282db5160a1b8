/// The few elements that our pictures are made of.
enum SVG {
    /// Ours stands out; the others are told apart by their names.
    static let ours = "#c2410c"
    static let others = "#94a3b8"
    static let ink = "#0f172a"
    static let pale = "#475569"

    /// A white page with a title and a line below it; the body begins at y 66.
    static func page(width: Double, height: Double, title: String, subtitle: String, body: String) -> String {
        """
        <svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 \(width) \(height)" width="\(width)" height="\(height)" \
        font-family="DejaVu Sans, Helvetica, Arial, sans-serif" font-size="11">
        <rect width="100%" height="100%" fill="#ffffff"/>
        <g font-size="16">\(text(title, 14, 26, weight: "bold"))</g>
        \(text(subtitle, 14, 44, fill: pale))
        \(body)</svg>

        """
    }

    static func text(
        _ words: String, _ x: Double, _ y: Double, weight: String = "normal", fill: String = ink,
        anchor: String = "start"
    ) -> String {
        let safe = words.replacing("&", with: "&amp;").replacing("<", with: "&lt;").replacing(">", with: "&gt;")
        let place = "x=\"\(x)\" y=\"\(y)\" text-anchor=\"\(anchor)\""
        return "<text \(place) font-weight=\"\(weight)\" fill=\"\(fill)\">\(safe)</text>\n"
    }

    static func line(
        _ from: (x: Double, y: Double), _ to: (x: Double, y: Double), stroke: String = ink, width: Double = 1.2
    ) -> String {
        """
        <line x1="\(from.x)" y1="\(from.y)" x2="\(to.x)" y2="\(to.y)" stroke="\(stroke)" stroke-width="\(width)"/>

        """
    }
}
