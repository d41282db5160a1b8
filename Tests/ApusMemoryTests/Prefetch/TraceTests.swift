import Foundation
import Testing

@testable import ApusMemory

/// Orders judged by what real guests used (`./dev trace`): TCG, QEMU 7.2, 32 MiB visited 4,000 times a second, a check of all
/// its memory going on beside it.
@Suite struct TraceTests {
    @Test(arguments: [("scan", 0.25), ("strided", 0.12), ("zipf", 0.29), ("phases", 0.45), ("random", 0.27)])
    func aRealGuestFindsItsPages(name: String, share: Double) throws {
        let simulation = try PushSimulation(trace: name)
        let plain = simulation.faults(.sweep)
        let trend = simulation.faults(.trend)
        let oracle = simulation.oracle
        #expect(plain > 200 && Double(trend) <= share * Double(plain), "\(name): \(trend) of \(plain)")
        #expect(oracle <= trend, "\(name): \(oracle), although it knows all")
    }
}

extension PushSimulation {
    init(trace name: String) throws {
        let url = try #require(Bundle.module.url(forResource: "Traces/\(name)", withExtension: "txt"))
        try self.init(text: String(contentsOf: url, encoding: .utf8))
    }

    init(text: String) throws {
        let lines = text.split(separator: "\n").map { $0.split(separator: " ") }
        let head = try #require(lines.first)
        try #require(head.count == 4 && head[0] == "apus-trace" && head[1] == "1")
        self.init(pageCount: try #require(PageNumber(head[3])), after: [])
        for words in lines.dropFirst() {
            let ms = try #require(Double(words[1]))
            let runs = try Self.runs(words.dropFirst(2))
            if words[0] == "before" {
                before.add(runs, ms: Float(ms))
            } else {
                // Within an epoch it is not known when; the order of places is as good as any.
                let pages = runs.flatMap { run in (0..<run.count).map { run.first + PageNumber($0) } }
                let sinceMs = after.last?.ms ?? 0
                for (index, page) in pages.enumerated() {
                    let share = Double(index + 1) / Double(pages.count)
                    after.append(.init(ms: sinceMs + (ms - sinceMs) * share, page: page))
                }
            }
        }
    }

    private static func runs(_ words: ArraySlice<Substring>) throws -> [(first: PageNumber, count: Int)] {
        var end: PageNumber = 0
        return try words.map { word in
            let numbers = word.split(separator: "x").compactMap { Int($0) }
            let first = end + PageNumber(try #require(numbers.first))
            let count = numbers.count > 1 ? numbers[1] : 1
            end = first + PageNumber(count)
            return (first, count)
        }
    }
}
