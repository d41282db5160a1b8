/// Text in rows and columns, for terminals and for Markdown.
public struct Table: Sendable, Equatable {
    public var head: [String]
    public var rows: [[String]] = []

    public init(_ head: [String]) { self.head = head }

    private var widths: [Int] {
        head.indices.map { column in ([head] + rows).map { $0[column].count }.max() ?? 0 }
    }

    /// Columns padded; the first one to the left, the others, numbers mostly, to the right.
    public var plain: String {
        let rule = widths.map { String(repeating: "-", count: $0) }
        return ([head, rule] + rows).map { row in
            line(row).joined(separator: "  ").trimmingSuffix(" ")
        }.joined(separator: "\n")
    }

    public var markdown: String {
        let rule = widths.enumerated().map { column, width in
            column == 0 ? String(repeating: "-", count: width) : String(repeating: "-", count: max(1, width - 1)) + ":"
        }
        return ([head, rule] + rows).map { "| " + line($0).joined(separator: " | ") + " |" }.joined(separator: "\n")
    }

    private func line(_ row: [String]) -> [String] {
        zip(row, widths).enumerated().map { column, cell in
            let space = String(repeating: " ", count: max(0, cell.1 - cell.0.count))
            return column == 0 ? cell.0 + space : space + cell.0
        }
    }
}

extension String {
    fileprivate func trimmingSuffix(_ character: Character) -> String {
        var text = self
        while text.last == character { text.removeLast() }
        return text
    }
}
