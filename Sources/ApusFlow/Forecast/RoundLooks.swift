internal import ApusMemory
internal import ApusSystem

/// Looks at what a guest writes, at every scan of a direct source and in between.
///
/// ```
///   scan    25 50  100     200             400                                             scan
///    |-------x--x----x-------x---------------x- - - x - - - x - - - x - - - x - - - x - - - x    each from the last scan on
/// ```
///
/// A look in between counts and protects nothing, so the guest faults no more for it. It sees one more point of the curve.
struct RoundLooks: Sendable {
    private let tracker: WriteTracker
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

    init(_ tracker: WriteTracker, _ brake: Brake?) {
        self.tracker = tracker
        self.brake = brake
        scanned = began
    }

    var elapsedMs: Double { Instant.now().ms(since: began) }
    var sinceScanMs: Double { Instant.now().ms(since: scanned) }
    /// The guest's time since the last scan.
    private func guestMs(_ gate: SwitchGate) -> Double {
        gate.guestMs(sinceScanMs, stoodMs: Double((brake?.stoppedNs ?? 0) &- stoppedNs) / 1e6)
    }

    /// - Returns: a look; nil: none is due. `isNews`: unlike the one before it.
    mutating func look(_ gate: SwitchGate) throws(SystemError) -> (seen: WorkingSetHistory.Look, isNews: Bool)? {
        let nowMs = sinceScanMs
        guard nowMs >= dueMs else { return nil }
        let spanMs = guestMs(gate)
        let pages = Double(try tracker.writtenBytes() / UInt64(Limits.pageBytes))
        let costMs = sinceScanMs - nowMs
        dueMs = sinceScanMs + max(min(nowMs, Self.longestMs), costMs / Self.costShare)
        let isNews = spanMs > Self.keptGrowth * keptMs
        if isNews { keptMs = spanMs }
        return (WorkingSetHistory.Look(endMs: elapsedMs, spanMs: spanMs, pages: pages), isNews)
    }

    /// A scan begins now.
    ///
    /// - Returns: the guest's time that it is about.
    mutating func close(_ gate: SwitchGate) -> Double {
        let spanMs = guestMs(gate)
        scanned = Instant.now()
        stoppedNs = brake?.stoppedNs ?? 0
        (dueMs, keptMs) = (Self.firstMs, 0)
        return spanMs
    }
}
