import Foundation
import Testing

/// Reads the sources as text and holds them to the rules that no compiler checks.
@Suite struct TidyTests {
    private struct Source {
        let path: String
        let module: String
        let lines: [String]
        var isTest: Bool { path.hasPrefix("Tests/") }
    }

    private static let root = URL(fileURLWithPath: #filePath)
        .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()

    private static let sources: [Source] = ["Sources", "Tests"].flatMap { folder -> [Source] in
        let base = root.appendingPathComponent(folder)
        let paths = FileManager.default.enumerator(atPath: base.path)?.compactMap { $0 as? String } ?? []
        return paths.filter { $0.hasSuffix(".swift") }.sorted().compactMap { path in
            guard let text = try? String(contentsOf: base.appendingPathComponent(path), encoding: .utf8) else {
                return nil
            }
            return Source(
                path: "\(folder)/\(path)", module: String(path.prefix { $0 != "/" }),
                lines: text.components(separatedBy: "\n"))
        }
    }

    /// Bottom first: a module imports only what stands before it.
    private static let layers = [
        "CApus", "CZstd", "CLZ4", "CXXHash", "COpenSSL", "ApusSystem", "ApusMemory", "ApusCodec", "ApusContent",
        "ApusWire",
        "ApusFabric",
        "ApusFlow", "ApusAPI", "ApusQMP", "ApusControl", "ApusLab", "apus", "lab",
    ]
    private static let dataPlane: Set = [
        "ApusSystem", "ApusMemory", "ApusCodec", "ApusContent", "ApusWire", "ApusFabric", "ApusFlow",
    ]

    private func offenders(_ match: (Source, String) -> Bool) -> [String] {
        Self.sources.flatMap { source in
            source.lines.enumerated().filter { match(source, $0.element) }.map { "\(source.path):\($0.offset + 1)" }
        }
    }

    private static func code(_ line: String) -> Substring {
        line.range(of: "//").map { line[..<$0.lowerBound] } ?? line[...]
    }

    @Test func theSourcesAreFound() { #expect(Self.sources.count > 60) }

    @Test func importsGoOneWay() {
        let wrong = offenders { source, line in
            let words = Self.code(line).split(separator: " ")
            guard !source.isTest, let at = words.firstIndex(of: "import"), at + 1 < words.count,
                let own = Self.layers.firstIndex(of: source.module),
                let other = Self.layers.firstIndex(of: String(words[at + 1]))
            else { return false }
            return other >= own
        }
        #expect(wrong == [])
    }

    @Test func theDataPlaneDependsOnTheToolchainOnly() {
        let allowed = Set(Self.layers).union(["Glibc", "Synchronization"])
        let wrong = offenders { source, line in
            let words = Self.code(line).split(separator: " ")
            guard Self.dataPlane.contains(source.module), let at = words.firstIndex(of: "import"), at + 1 < words.count
            else { return false }
            return !allowed.contains(String(words[at + 1]))
        }
        #expect(wrong == [])
    }

    @Test func unsafeStaysInsideTheFence() {
        let outside = offenders { source, line in
            guard !source.isTest, source.module != "ApusSystem" else { return false }
            return Self.code(line).split { !$0.isLetter && $0 != "_" }.contains("unsafe")
        }
        #expect(outside == [])
    }

    @Test func uncheckedSendableSaysWhy() {
        let silent = Self.sources.filter { !$0.isTest }.flatMap { source in
            source.lines.indices.filter { index in
                Self.code(source.lines[index]).contains("@unchecked Sendable")
                    && !source.lines[max(0, index - 4)...index].contains {
                        $0.contains("// @unchecked:") || $0.contains("// SAFETY:")
                    }
            }.map { "\(source.path):\($0 + 1)" }
        }
        #expect(silent == [])
    }

    @Test(arguments: ["try!", "fatalError(", "nonisolated(unsafe)", "as!"])
    func bannedInProducts(word: String) {
        #expect(offenders { source, line in !source.isTest && Self.code(line).contains(word) } == [])
    }

    @Test(arguments: ["[UInt8](", "AsyncStream", "Task {", "await ", "print(", ".random("])
    func bannedInTheDataPlane(word: String) {
        let wrong = offenders { source, line in
            // Control frames of the fabric are arrays; pages never are.
            Self.dataPlane.contains(source.module) && source.module != "ApusFabric"
                && !source.path.contains("/Process") && Self.code(line).contains(word)
        }
        let allowed = wrong.filter { !Self.allowedArrays.contains(where: $0.hasPrefix) }
        #expect(allowed == [])
    }
    /// Buffers that are made once and reused.
    private static let allowedArrays = [
        "Sources/ApusWire/Qemu/StreamBuffer.swift", "Sources/ApusSystem/ProcFile.swift",
        "Sources/ApusSystem/LocalPeer.swift",
        "Sources/ApusWire/Frames/Payloads.swift",
    ]

    @Test func noOpenEnds() {
        let words = ["TO" + "DO", "FIX" + "ME", "XX" + "X"]
        let open = offenders { _, line in line.split { !$0.isLetter }.contains { words.contains(String($0)) } }
        #expect(open == [])
    }

    @Test func filesStaySmall() {
        let long = Self.sources.filter { !$0.isTest && $0.lines.count > 420 }
        #expect(long.map { "\($0.path): \($0.lines.count)" } == [])
    }

    @Test func linesFitTheScreen() {
        #expect(offenders { _, line in line.count > 140 } == [])
    }
}
