/// How much may be on its way to somebody who shares the link with what is more urgent. A pure value: time comes in as numbers.
///
/// ```
///   took     |######################| a frame, from here to its credit
///   least    |############|           the least that any took: the way itself
///   queue                 |#########| what is urgent waits behind it too
/// ```
///
/// Grows while the queue is shorter than it may be, shrinks when it is longer. One frame may have waited for a processor
/// instead of the link, so of each round of frames the fastest counts. A round is what is in flight, so that each sees what
/// became of the one before.
struct PushWindow: Sendable {
    /// In flight at most.
    private(set) var bytes: Double
    private var leastNs = UInt64.max
    private var leastSinceNs: UInt64 = 0
    private var fastestNs = UInt64.max
    private var frames = 0
    private var isStarting = true

    static let bytesMin = 32.0 * 1024
    static let bytesMax = 8.0 * 1024 * 1024
    static let queueNs: UInt64 = 150_000
    /// Of a long way, as a share of it: times vary with it, and what is urgent takes that long anyhow.
    private static let queueShare: UInt64 = 8
    static let roundFrames = 8
    private static let stepBytes = 4.0 * 1024
    private static let stepShare = 1.0 / 8
    /// The way may have become longer: after so long it is measured anew, with as little in flight as there may be.
    private static let leastForNs: UInt64 = 10_000_000_000

    init() { bytes = Self.bytesMin }

    /// A frame has been credited.
    ///
    /// - Parameters:
    ///   - isFull: the window, not the work, was what limited the sender.
    ///   - inFlight: frames that are not credited.
    mutating func credited(tookNs: UInt64, isFull: Bool, inFlight: Int, nowNs: UInt64) {
        if tookNs < leastNs || leastNs == .max {
            leastNs = tookNs
            leastSinceNs = nowNs
        }
        fastestNs = min(fastestNs, tookNs)
        frames += 1
        guard frames >= max(Self.roundFrames, inFlight) else { return }
        if nowNs - leastSinceNs > Self.leastForNs {
            leastNs = .max
            bytes = Self.bytesMin
        } else if fastestNs - leastNs > max(Self.queueNs, leastNs / Self.queueShare) {
            isStarting = false
            bytes = max(bytes * 0.875, Self.bytesMin)
        } else if isFull {
            bytes = min(isStarting ? bytes * 1.5 : bytes + max(Self.stepBytes, bytes * Self.stepShare), Self.bytesMax)
        }
        frames = 0
        fastestNs = .max
    }
}
