public import ApusMemory

/// How the pages came that the destination lacked when its guest began to run.
public struct PullCounts: Codable, Sendable, Equatable {
    /// Pages that were missing when the guest was handed over, and now.
    public var missingAtFlip: UInt64 = 0
    public var missing: UInt64 = 0
    /// Touches of a missing page that somebody had to wait for, and how long, microseconds.
    public var faults: UInt64 = 0
    public var faultP50Us: Double = 0
    public var faultP99Us: Double = 0
    public var faultMaxUs: Double = 0
    /// How many waited for up to 2, 4, 8 … microseconds, without empty ends.
    public var faultHistogram: [UInt64]? = nil
    /// Sum of these waits: what vCPUs and devices have stood still.
    public var stallMs: Double = 0
    /// Pages that came because somebody waited for them, and those that came by themselves.
    public var faultedPages: UInt64 = 0
    public var pushedPages: UInt64 = 0
    /// Bytes received for them, frames included.
    public var wireBytes: UInt64 = 0
    /// From the flip until nothing was missing; nil: something is, or an agent was restarted meanwhile.
    public var wholeMs: Double?

    public init() {}
}

/// What decided the order of pushed pages; counted by the source.
public struct PrefetchCounts: Sendable, Equatable {
    public var order: Prefetch
    /// Pushed pages by what brought them forward.
    public var nearPages: UInt64
    public var trendPages: UInt64
    public var recordedPages: UInt64
    public var restPages: UInt64
    /// Touched pages that were on their way already when they were asked for.
    public var lateFaults: UInt64
    /// Pages that the guest used while that was recorded, and for how long it was.
    public var recordPages: UInt64
    public var recordMs: Double
    /// What the record cost: emptying the page tables, and all looks into them.
    public var zapMs: Double
    public var looksMs: Double
    /// Why there is no record, or one of writes only.
    public var lack: String?
}

/// Times, each counted to within 10 %. A pure value of fixed size.
struct LatencyHistogram: Sendable {
    private var counts = [UInt64](repeating: 0, count: 256)
    private(set) var count: UInt64 = 0
    private(set) var maxUs = 0.0
    private(set) var sumUs = 0.0

    mutating func add(us: Double) {
        let us = max(us, 1)
        var bucket = 0
        // 2 to the power of 1/8, step by step: no logarithm is needed for at most 256 of them.
        var edge = Self.ratio
        while us > edge && bucket < counts.count - 1 {
            edge *= Self.ratio
            bucket += 1
        }
        counts[bucket] += 1
        count += 1
        sumUs += us
        maxUs = max(maxUs, us)
    }

    /// The time that a share of all did not exceed; 0 when there were none.
    func quantile(_ share: Double) -> Double {
        let wanted = UInt64((Double(count) * share).rounded(.up))
        var seen: UInt64 = 0
        var edge = 1.0
        for bucket in counts {
            edge *= Self.ratio
            seen += bucket
            if wanted > 0 && seen >= wanted { return min(edge, maxUs) }
        }
        return maxUs
    }

    /// Counts by powers of two: up to 2, 4, 8 … microseconds.
    var octaves: [UInt64] {
        var octaves = stride(from: 0, to: counts.count, by: 8).map { counts[$0..<$0 + 8].reduce(0, +) }
        while octaves.last == 0 { octaves.removeLast() }
        return octaves
    }

    private static let ratio = 1.0905077326652577
}
