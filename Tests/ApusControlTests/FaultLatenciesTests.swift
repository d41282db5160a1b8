import ApusFlow
import Testing

@testable import ApusControl

@Suite struct FaultLatenciesTests {
    @Test func timesAreWithinOnePerCent() throws {
        let latencies = FaultLatencies()
        var counts = PullCounts()
        latencies.fill(&counts)
        #expect(counts == PullCounts())
        for us in 1...10_000 as ClosedRange<UInt64> { latencies.add(ns: us * 1000) }
        latencies.fill(&counts)
        #expect(counts.faults == 10_000 && counts.stallMs == 50_005)
        for (value, us) in [(counts.faultP50Us, 5_000.0), (counts.faultP99Us, 9_900), (counts.faultMaxUs, 10_000)] {
            #expect(abs(value - us) <= us * 0.01, "\(value), not \(us)")
        }
        // Below 2, 4, 8 … microseconds; the last octave is 8192 to 16384.
        let octaves = try #require(counts.faultHistogram)
        #expect(octaves.count == 14 && octaves.reduce(0, +) == 10_000, "\(octaves)")
        #expect(abs(Double(octaves[12]) - 4096) < 100, "\(octaves)")
        // An hour and more is an hour.
        latencies.add(ns: .max / 2)
        latencies.fill(&counts)
        #expect(counts.faultMaxUs >= 3.5e9 && counts.faults == 10_001)
    }
}
