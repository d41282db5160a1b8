public import ApusMemory

/// How the pages came that the destination lacked when its guest began to run. What touches waited for is told as it happens,
/// and summed up by whoever hears it.
public struct PullCounts: Codable, Sendable, Equatable {
    /// Pages that were missing when the guest was handed over, and now.
    public var missingAtFlip: UInt64 = 0
    public var missing: UInt64 = 0
    /// Touches of a missing page that somebody had to wait for, and how long, microseconds.
    public var faults: UInt64 = 0
    public var faultP50Us: Double = 0
    public var faultP99Us: Double = 0
    public var faultMaxUs: Double = 0
    /// How many waited for less than 2, 4, 8 … microseconds, without empty ends.
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
    /// What the guest used of the pushed pages until nothing was missing; nil: something is, or it cannot be told.
    public var use: PushUse? = nil

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
