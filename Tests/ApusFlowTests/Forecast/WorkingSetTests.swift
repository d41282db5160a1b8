import Foundation
import Testing

@testable import ApusFlow

/// A guest that writes pages by a rule of its own, watched for spans of several lengths.
private struct Writer {
    let next: (inout SplitMix) -> Int
    let writesPerMs: Double

    func pages(inMs ms: Double, _ random: inout SplitMix) -> Double {
        var seen: Set<Int> = []
        for _ in 0..<Int(ms * writesPerMs) { seen.insert(next(&random)) }
        return Double(seen.count)
    }

    /// As a plan watches it: three parts, and in each looks at all that was written since it began.
    func watched(seconds: Double, seed: UInt64) -> WorkingSetHistory {
        var random = SplitMix(state: seed)
        var history = WorkingSetHistory()
        var now = 0.0
        for part in WriteWatch.parts {
            var seen: Set<Int> = []
            var (at, lookMs, partMs) = (0.0, WriteWatch.firstLookMs, part * seconds * 1000)
            while at < partMs {
                let next = lookMs * WriteWatch.lookGrowth < partMs ? lookMs : partMs
                for _ in 0..<Int((next - at) * writesPerMs) { seen.insert(self.next(&random)) }
                (at, lookMs) = (next, lookMs * WriteWatch.lookGrowth)
                history.add(.init(endMs: now + at, spanMs: at, pages: Double(seen.count)))
            }
            now += partMs
        }
        return history
    }

    func history(_ spansMs: [Double], seed: UInt64) -> WorkingSetHistory {
        var random = SplitMix(state: seed)
        var history = WorkingSetHistory()
        var now = 0.0
        for span in spansMs {
            now += span
            history.add(.init(endMs: now, spanMs: span, pages: pages(inMs: span, &random)))
        }
        return history
    }
}

struct SplitMix: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
        return mixed ^ (mixed >> 31)
    }
}

@Suite("working set") struct WorkingSetTests {
    /// As a migration's rounds are: long ones first, then shorter and shorter.
    private static let rounds: [Double] = [1500, 700, 300, 120, 50, 20, 500, 200, 80]

    @Test("a set written at random is found, and says what other spans would show", arguments: [1, 2, 3] as [UInt64])
    func randomSet(seed: UInt64) throws {
        let writer = Writer(next: { Int.random(in: 0..<4000, using: &$0) }, writesPerMs: 10)
        let curve = try #require(writer.history(Self.rounds, seed: seed).curve)
        #expect(abs(curve.dirtied(inMs: 10_000) - 4000) < 400)
        var random = SplitMix(state: seed &+ 99)
        for ms in [10.0, 35, 90, 250, 1000, 3000] {
            let real = writer.pages(inMs: ms, &random)
            #expect(abs(curve.dirtied(inMs: ms) - real) < 0.09 * real + 3, "\(ms) ms: \(real)")
        }
    }

    /// A hot set, and what every guest has besides: some pages of its kernel's, written all the time.
    private func writer(hotPages: Int, kernelPages: Int, kernelShare: Double, writesPerMs: Double) -> Writer {
        Writer(
            next: {
                Double.random(in: 0..<1, using: &$0) < kernelShare
                    ? -Int.random(in: 1...kernelPages, using: &$0) : .random(in: 0..<hotPages, using: &$0)
            }, writesPerMs: writesPerMs)
    }

    private func expect(_ curve: WorkingSet, tells writer: Writer, seed: UInt64, _ doubts: [Double: Double]) {
        var random = SplitMix(state: seed &+ 99)
        for (ms, doubt) in doubts.sorted(by: { $0.key < $1.key }) {
            let real = writer.pages(inMs: ms, &random)
            #expect(abs(curve.dirtied(inMs: ms) - real) < doubt * real + 3, "\(ms) ms: \(real), \(curve)")
        }
    }

    @Test("a large set is told beside a small one, far beyond what was watched", arguments: Array(1...8) as [UInt64])
    func widerSet(seed: UInt64) throws {
        let writer = writer(hotPages: 16_384, kernelPages: 180, kernelShare: 0.46, writesPerMs: 11.3)
        let curve = try #require(writer.watched(seconds: 2, seed: seed).curve)
        // Beyond what was watched chance counts for more.
        expect(
            curve, tells: writer, seed: seed, [30: 0.09, 120: 0.09, 500: 0.09, 1400: 0.09, 2500: 0.09, 5000: 0.15])
    }

    @Test("a small set is told beside one that is written within a round", arguments: Array(1...4) as [UInt64])
    func smallSet(seed: UInt64) throws {
        let writer = writer(hotPages: 2048, kernelPages: 60, kernelShare: 0.85, writesPerMs: 6.1)
        let spansMs: [Double] = [25, 50, 100, 200, 400, 800, 1600, 3200, 5000, 500, 100, 20, 10]
        let curve = try #require(writer.history(spansMs, seed: seed).curve)
        expect(curve, tells: writer, seed: seed, [10: 0.15, 30: 0.15, 100: 0.15, 1000: 0.15, 4000: 0.15])
    }

    @Test("a set written in order, over and over") func sequentialSet() throws {
        var at = 0
        var history = WorkingSetHistory()
        var now = 0.0
        for span in Self.rounds {
            now += span
            let writes = Int(span * 10)
            at += writes
            history.add(.init(endMs: now, spanMs: span, pages: Double(min(writes, 4000))))
        }
        let curve = try #require(history.curve)
        // The curve is rounder than the truth at its knee, and right on both sides of it.
        for (ms, real) in [(20.0, 200.0), (100, 1000), (1500, 4000), (5000, 4000)] {
            #expect(abs(curve.dirtied(inMs: ms) - real) < 0.25 * real, "\(ms) ms: \(curve.dirtied(inMs: ms))")
        }
    }

    @Test("new pages for ever are a drift, not a set") func drift() throws {
        var history = WorkingSetHistory()
        var now = 0.0
        for span in Self.rounds {
            now += span
            history.add(.init(endMs: now, spanMs: span, pages: span * 3))
        }
        let curve = try #require(history.curve)
        #expect(abs(curve.dirtied(inMs: 60_000) - 180_000) < 9_000)
        #expect(curve.spread < 0.01)
    }

    @Test("an idle guest has no set, and no look no curve") func idle() {
        #expect(WorkingSetHistory().curve == nil)
        #expect(WorkingSetHistory().trend == nil)
        var history = WorkingSetHistory()
        for at in 1...4 { history.add(.init(endMs: Double(at) * 100, spanMs: 100, pages: 0)) }
        #expect(history.curve?.dirtied(inMs: 1000) == 0)
    }

    @Test("looks without a sense are left out, and only the latest are kept") func bounds() {
        var history = WorkingSetHistory()
        for bad in [
            WorkingSetHistory.Look(endMs: 1, spanMs: 0, pages: 1), .init(endMs: 1, spanMs: -1, pages: 1),
            .init(endMs: 1, spanMs: 1, pages: -1), .init(endMs: 1, spanMs: .nan, pages: 1),
            .init(endMs: 1, spanMs: 1, pages: .infinity),
        ] {
            history.add(bad)
        }
        #expect(history.looks.isEmpty)
        for at in 1...200 { history.add(.init(endMs: Double(at), spanMs: 1, pages: 5)) }
        #expect(history.looks.count == WorkingSetHistory.looksMax)
        #expect(history.looks.last?.endMs == 200)
    }

    @Test("a rising and a falling writer are told from a steady one") func trend() throws {
        func trend(_ perMs: (Double) -> Double) throws -> WorkingSetHistory.Trend {
            var history = WorkingSetHistory()
            for at in 1...8 {
                let now = Double(at) * 250
                history.add(.init(endMs: now, spanMs: 250, pages: 250 * perMs(now)))
            }
            return try #require(history.trend)
        }
        let rising = try trend { 1 + $0 / 1000 }
        #expect(rising.risePerS > 0.2 && rising.certainty > 0.9)
        let falling = try trend { 4 - $0 / 1000 }
        #expect(falling.risePerS < -0.2 && falling.certainty > 0.9)
        let steady = try trend { _ in 2 }
        #expect(abs(steady.risePerS) < 0.01)
        #expect(abs(steady.level - 1) < 0.01)
    }

    /// Spans of other lengths find other rates of one and the same guest: that is no trend.
    @Test("shorter looks at the same guest are no rise") func lengthIsNoTrend() throws {
        let writer = Writer(next: { Int.random(in: 0..<4000, using: &$0) }, writesPerMs: 20)
        let history = writer.history([1600, 800, 400, 200, 100, 50, 25, 12], seed: 7)
        let trend = try #require(history.trend)
        #expect(abs(trend.level - 1) < 0.15)
    }
}
