import Foundation
import Testing

/// The same code in two places is a fault that one of them will be corrected without the other.
@Suite struct DuplicatesTests {
    /// Lines in a row, as long as nothing that looks the same by its nature (imports, braces, comments) counts.
    private static let linesMax = 8

    private struct Line: Sendable {
        let file: String
        let number: Int
        let text: String
    }

    @Test func noCodeIsThereTwice() throws {
        let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
            .deletingLastPathComponent()
        var firstSeen: [[String]: Line] = [:]
        var found: [String] = []
        for folder in ["Sources", "Tests"] {
            for file in try Self.swiftFiles(in: root.appendingPathComponent(folder)) {
                let lines = try Self.significantLines(of: file, name: file.path.replacing(root.path + "/", with: ""))
                var start = 0
                while start + Self.linesMax <= lines.count {
                    let window = lines[start..<start + Self.linesMax].map(\.text)
                    if let other = firstSeen[window],
                        other.file != lines[start].file || other.number != lines[start].number
                    {
                        found.append(
                            "\(lines[start].file):\(lines[start].number) repeats \(other.file):\(other.number)")
                        start += Self.linesMax
                    } else {
                        firstSeen[window] = lines[start]
                        start += 1
                    }
                }
            }
        }
        #expect(
            found.isEmpty, "\(Self.linesMax) lines or more, the same in two places:\n\(found.joined(separator: "\n"))")
    }

    private static func swiftFiles(in folder: URL) throws -> [URL] {
        let all = FileManager.default.enumerator(at: folder, includingPropertiesForKeys: nil)
        return (all?.allObjects ?? []).compactMap { $0 as? URL }.filter { $0.pathExtension == "swift" }
            .sorted { $0.path < $1.path }
    }

    private static func significantLines(of file: URL, name: String) throws -> [Line] {
        let text = try String(contentsOf: file, encoding: .utf8)
        return text.split(separator: "\n", omittingEmptySubsequences: false).enumerated().compactMap { index, raw in
            let line = raw.trimmingCharacters(in: .whitespaces)
            let isCode =
                line.contains { $0.isLetter } && !line.hasPrefix("//") && !line.contains("import ")
                && !Self.isBoilerplate(line)
            return isCode ? Line(file: name, number: index + 1, text: line) : nil
        }
    }

    /// Stored properties and memberwise initialisers look alike wherever the same things are stored.
    private static func isBoilerplate(_ line: String) -> Bool {
        let stores = (line.contains("var ") || line.contains("let ")) && !line.contains("=") && !line.contains("{")
        let assigns = line.hasPrefix("self.") && line.contains(" = ")
        return stores || assigns || line.hasPrefix("public init(")
    }
}
