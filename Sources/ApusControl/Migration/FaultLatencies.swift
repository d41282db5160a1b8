import ApusFlow
import ApusSystem
import Histogram

/// How long touches of missing pages have waited, each to within 1 %. Told by the threads that install pages.
final class FaultLatencies: Sendable {
    private struct Content: Sendable {
        /// Microseconds, up to an hour.
        var waits = Histogram<UInt64>(
            highestTrackableValue: FaultLatencies.usMax, numberOfSignificantValueDigits: .two)
        var sumNs: UInt64 = 0
    }
    private static let usMax: UInt64 = 3_600_000_000
    private let content = Monitor(Content())

    func add(ns: UInt64) {
        content.update { content in
            content.waits.record(min(max(ns / 1000, 1), Self.usMax))
            content.sumNs += ns
        }
    }

    /// Puts what is known so far into a count of pages.
    func fill(_ counts: inout PullCounts) {
        let (waits, sumNs) = content.read { ($0.waits, $0.sumNs) }
        counts.faults = waits.totalCount
        counts.stallMs = Double(sumNs) / 1e6
        guard waits.totalCount > 0 else { return }
        counts.faultP50Us = Double(waits.valueAtPercentile(50))
        counts.faultP99Us = Double(waits.valueAtPercentile(99))
        counts.faultMaxUs = Double(waits.max)
        counts.faultHistogram = Self.octaves(waits)
    }

    /// Counts by powers of two: below 2, 4, 8 … microseconds.
    private static func octaves(_ waits: Histogram<UInt64>) -> [UInt64] {
        var octaves: [UInt64] = []
        var least: UInt64 = 0
        while least <= waits.max {
            let end = max(2, least * 2)
            octaves.append(waits.count(within: least...end - 1))
            least = end
        }
        return octaves
    }
}
