internal import ApusMemory
internal import ApusSystem

/// When to look at what a guest writes: at every scan of a direct source and in between.
///
/// ```
///   scan    25 50  100     200             400                                             scan
///    |-------x--x----x-------x---------------x- - - x - - - x - - - x - - - x - - - x - - - x    each from the last scan on
/// ```
///
/// A look in between counts and protects nothing, so the guest faults no more for it. It sees one more point of the curve.
struct RoundLooks: Sendable {
    private let brake: Brake?
    private let began = Instant.now()
    private var scanned: Instant
    private var stoppedNs: UInt64 = 0
    private var dueMs = Self.firstMs
    /// Looks of nearly the same length say the same.
    private var keptMs = 0.0

    /// From each to the next: twice as long, but never longer than this.
    static let longestMs = 200.0
    private static let firstMs = 25.0
    private static let keptGrowth = 1.25
    /// Looking takes the source's thread at most this share of its time: a large guest has large page tables.
    private static let costShare = 0.05

    init(_ brake: Brake?) {
        self.brake = brake
        scanned = began
    }

    var elapsedMs: Double { Instant.now().ms(since: began) }
    var sinceScanMs: Double { Instant.now().ms(since: scanned) }
    /// How much of the time since the last scan the vCPUs stood still.
    private var stoodMs: Double { Double((brake?.stoppedNs ?? 0) &- stoppedNs) / 1e6 }

    /// Time until the next look is due.
    var untilDueMs: Double { max(dueMs - sinceScanMs, 0) }

    /// - Parameter writtenPages: since the last scan; nil: it cannot be told.
    /// - Returns: a look; nil: none is due. `isNews`: unlike the one before it.
    mutating func look(
        _ writtenPages: () throws(SystemError) -> Double?
    ) throws(SystemError) -> (seen: TimedLook, isNews: Bool)? {
        let nowMs = sinceScanMs
        guard nowMs >= dueMs else { return nil }
        let stoodMs = stoodMs
        let pages = try writtenPages()
        let costMs = sinceScanMs - nowMs
        dueMs = sinceScanMs + max(min(nowMs, Self.longestMs), costMs / Self.costShare)
        guard let pages else { return nil }
        let isNews = nowMs > Self.keptGrowth * keptMs
        if isNews { keptMs = nowMs }
        return (TimedLook(endMs: elapsedMs, spanMs: nowMs, stoodMs: stoodMs, pages: pages), isNews)
    }

    /// A scan begins now.
    ///
    /// - Returns: a look at what it will tell, without its pages.
    mutating func close() -> TimedLook {
        let look = TimedLook(endMs: elapsedMs, spanMs: sinceScanMs, stoodMs: stoodMs, pages: 0)
        scanned = Instant.now()
        stoppedNs = brake?.stoppedNs ?? 0
        (dueMs, keptMs) = (Self.firstMs, 0)
        return look
    }
}
