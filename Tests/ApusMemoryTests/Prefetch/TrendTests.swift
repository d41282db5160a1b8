import ApusMemory
import Testing

@Suite struct TrendTests {
    @Test func aMajorityIsAStride() throws {
        let trend = try #require(Trend.of([8, 8, -3, 8]))
        #expect(trend.kind == .stride && trend.stride == 8 && trend.confidence == 0.75)
        #expect(Trend.of([8, 8, 8]) == nil, "too few")
        // The newest count: what they did before is over.
        #expect(Trend.of([Int](repeating: 1, count: 28) + [-4, -4, -4, -4])?.stride == -4)
        // In the long run only.
        let mixed = (0..<32).map { $0 % 3 == 2 ? 50 + $0 : 7 }
        #expect(Trend.of(mixed)?.stride == 7)
    }

    @Test func nearlyAlwaysUpIsADirection() throws {
        let up = try #require(Trend.of([3, 1, 4, 2, 7, 5, -2, 6, 9]))
        #expect(up.kind == .direction && up.stride == 1 && up.confidence <= 0.5)
        #expect(Trend.of([-3, -1, -4, -2, -7, -5, 2, -6])?.stride == -1)
        // Two wild ones do not turn it round.
        #expect(Trend.of([3, 1, 4, -9, 2, 7, 5, -8, 6, 9, 8, 2])?.stride == 1)
    }

    @Test func chanceIsNoTrend() {
        var random = Seeded(7)
        var (strides, directions) = (0, 0)
        for _ in 0..<1000 {
            let steps = (0..<32).map { _ in Int(random.next() % 256) - 128 }.map { $0 == 0 ? 1 : $0 }
            switch Trend.of(steps)?.kind {
            case .stride: strides += 1
            case .direction: directions += 1
            case nil: break
            }
        }
        // 12 of 16 coins show the same side once in 13 times: a direction is given a few pages ahead, no more.
        #expect(strides == 0 && directions < 130, "\(strides), \(directions)")
    }
}
