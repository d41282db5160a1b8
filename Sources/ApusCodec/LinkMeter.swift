/// What a lane knows of its share of the link. A pure value: time comes in as numbers.
///
/// The link's rate shows only while the lane waits for it. So a window in which the lane waited gives the rate; a window
/// in which it did not says only "at least this much", and the estimate doubles until the first wait, and is tried again
/// upwards every few seconds after it.
public struct LinkMeter: Sendable {
    /// Length of one window.
    public static let windowNs: UInt64 = 100_000_000
    /// A wait this long for this many bytes shows the rate before the window is over: looking for a faster link that is
    /// not there costs a megabyte or two, not a whole window of them.
    private static let clearWaitNs: UInt64 = 4_000_000
    private static let clearBytes: UInt64 = 1 << 20
    /// A lane that sent less than this part of the estimate would not have waited for a link that is just so fast.
    private static let shownMin = 4.0
    /// Windows after which a faster link is looked for.
    private static let retryWindows = 50

    /// Estimate in bytes per nanosecond (which is GB/s).
    public private(set) var bytesPerNs: Double
    private var windowStartNs: UInt64
    private var creditedBytes: UInt64 = 0
    private var waitedNs: UInt64 = 0
    private var knownFromWait = false
    private var sinceKnown = 0
    private var isBusyElsewhere = false
    /// The estimate was raised on a guess that nothing has confirmed or refuted yet.
    private var isTryingUpwards = true

    /// - Parameter assumedBytesPerNs: the rate assumed until the first window ends; low, so that nothing that compresses
    ///   is wasted on a slow link.
    public init(nowNs: UInt64, assumedBytesPerNs: Double) {
        bytesPerNs = assumedBytesPerNs
        windowStartNs = nowNs
    }

    /// The rate as waiting has shown it; nil: the lane has never waited for the link, so how fast that is nobody knows.
    public var shownBytesPerNs: Double? { knownFromWait ? bytesPerNs : nil }

    /// The receiver has confirmed this many wire bytes more.
    public mutating func credited(_ bytes: UInt64) { creditedBytes += bytes }
    /// The lane does something else than sending pages: that it does not wait for the link says nothing.
    public mutating func wasBusyElsewhere() { isBusyElsewhere = true }
    /// The lane stood still for the link.
    public mutating func waited(ns: UInt64) { waitedNs += ns }

    /// Ends the window when it is over.
    public mutating func tick(nowNs: UInt64) {
        let elapsed = nowNs &- windowStartNs
        let isClear = isTryingUpwards && waitedNs > Self.clearWaitNs && creditedBytes > Self.clearBytes
        guard elapsed >= Self.windowNs || isClear else { return }
        let rate = Double(creditedBytes) / Double(elapsed)
        if (isClear || Double(waitedNs) > 0.25 * Double(elapsed)) && creditedBytes > 0 {
            bytesPerNs = knownFromWait ? bytesPerNs + (rate - bytesPerNs) * 0.4 : rate
            knownFromWait = true
            isTryingUpwards = false
            sinceKnown = 0
        } else if !isBusyElsewhere {
            sinceKnown += 1
            if !knownFromWait {
                if rate * Self.shownMin > bytesPerNs { bytesPerNs = max(bytesPerNs, rate) * 2 }
            } else if sinceKnown % Self.retryWindows == 0 {
                bytesPerNs *= 1.5
                isTryingUpwards = true
            }
            bytesPerNs = max(bytesPerNs, rate)
        }
        windowStartNs = nowNs
        creditedBytes = 0
        waitedNs = 0
        isBusyElsewhere = false
    }
}
