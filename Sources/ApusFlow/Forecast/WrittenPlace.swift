public import ApusMemory

/// Where in the first pass over a guest's data the pages lie that it writes. Those that travel early are written again before the
/// pass is over; those that travel late come again unchanged.
public struct WrittenPlace: Sendable, Equatable {
    public typealias Run = (first: PageNumber, count: Int)

    public let dataPages: Double
    public let writtenPages: Double
    /// Shares of the data before the first and before the last of them, as if they were spread evenly.
    public let ranks: ClosedRange<Double>

    /// - Parameters:
    ///   - written: ascending; what is not in `data` is left out.
    ///   - data: ascending.
    /// - Returns: nil: nothing is written.
    public init?(of written: [Run], in data: [Run]) {
        var ranked: [(rank: Int, count: Int)] = []
        var (index, before) = (0, 0)
        for run in written {
            while index < data.count, data[index].first + PageNumber(data[index].count) <= run.first {
                before += data[index].count
                index += 1
            }
            guard index < data.count, data[index].first <= run.first else { continue }
            ranked.append((before + Int(run.first - data[index].first), run.count))
        }
        let pages = ranked.reduce(0) { $0 + $1.count }
        guard pages > 0 else { return nil }
        let all = Double(data.reduce(0) { $0 + $1.count })
        func rank(at share: Double) -> Double {
            var left = share * Double(pages)
            for run in ranked {
                if left <= Double(run.count) { return Double(run.rank) + left }
                left -= Double(run.count)
            }
            return all
        }
        // A few pages far from all others are not to be seen.
        let (low, high) = (rank(at: 0.1), rank(at: 0.9))
        let beyond = (high - low) / 8
        (dataPages, writtenPages) = (all, Double(pages))
        ranks = max(0, (low - beyond) / all)...min(1, (high + beyond) / all)
    }

    /// The same as shares of the pass's time: what is written need not be as large on the wire as the rest.
    public func span(passBytes: Double, bytesPerPage: Double) -> ClosedRange<Double> {
        guard passBytes > 0 else { return 0...1 }
        let writtenBytes = min(writtenPages * bytesPerPage, passBytes)
        let restBytes = passBytes - writtenBytes
        // Of the rest, so much lies before them, and so much behind.
        let restPages = max(dataPages - writtenPages, 1)
        let before = min(ranks.lowerBound * dataPages / restPages, 1)
        let behind = min((1 - ranks.upperBound) * dataPages / restPages, 1 - before)
        return before * restBytes / passBytes...1 - behind * restBytes / passBytes
    }
}
