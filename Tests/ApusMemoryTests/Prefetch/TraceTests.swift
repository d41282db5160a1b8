import Foundation
import Testing

@testable import ApusMemory

/// Orders judged by what real guests used (`./dev trace`): TCG, QEMU 7.2, 32 MiB visited 4,000 times a second, a check of all
/// its memory going on beside it.
@Suite struct TraceTests {
    @Test(arguments: [("scan", 0.35), ("strided", 0.21), ("zipf", 0.42), ("phases", 0.55), ("random", 0.5)])
    func aRealGuestFindsItsPages(name: String, share: Double) throws {
        let simulation = try PushSimulation(trace: name)
        let plain = simulation.faults(.sweep)
        let trend = simulation.faults(.trend)
        #expect(plain > 200 && Double(trend) <= share * Double(plain), "\(name): \(trend) of \(plain)")
    }
}

extension PushSimulation {
    init(trace name: String) throws {
        let url = try #require(Bundle.module.url(forResource: "Traces/\(name)", withExtension: "txt"))
        let lines = try String(contentsOf: url, encoding: .utf8).split(separator: "\n").map { $0.split(separator: " ") }
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
                for run in runs {
                    for page in 0..<run.count { after.append(.init(ms: ms, page: run.first + PageNumber(page))) }
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
