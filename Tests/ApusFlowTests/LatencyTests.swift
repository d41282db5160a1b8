import Testing

@testable import ApusFlow

@Suite struct LatencyTests {
    @Test func quantilesAreWithinTenPercent() {
        var histogram = LatencyHistogram()
        #expect(histogram.quantile(0.5) == 0)
        for us in 1...10_000 { histogram.add(us: Double(us)) }
        #expect(histogram.count == 10_000 && histogram.maxUs == 10_000)
        for (share, us) in [(0.01, 100.0), (0.5, 5_000), (0.99, 9_900), (1, 10_000)] {
            #expect(abs(histogram.quantile(share) - us) <= us * 0.1, "\(share): \(histogram.quantile(share))")
        }
        #expect(histogram.sumUs == 50_005_000)
        // Beyond the last bucket too.
        histogram.add(us: 1e12)
        #expect(histogram.quantile(1) <= histogram.maxUs)
    }
}
