internal import ApusMemory

/// How much may be on its way to somebody who shares the link with what is more urgent. A pure value: time comes in as numbers.
///
/// ```
///   took     |################################| a frame, from here to its credit
///   own      |######|                           its own bytes on the link
///   way             |############|              the least that any took beside that: there, back, and the threads at both ends
///   queue                        |############| what is urgent waits behind it too
/// ```
///
/// After each round the window becomes what would have left just the allowed queue, as in FAST TCP: it is multiplied by
/// (own + way + allowed) / (own + way + queue). One frame may have waited for a processor instead of the link, so of each
/// round the fastest counts. A round is what is in flight, so that each sees what became of the one before.
struct PushWindow: Sendable {
    /// In flight at most.
    private(set) var bytes = 0.0
    /// The link's rate, as far as it has shown itself.
    private(set) var bytesPerNs: Double
    private var way = Way.unknown
    /// No queue has been seen since the link was last unknown.
    private var isStarting: Bool
    private var round = Round()

    private enum Way: Sendable {
        case unknown
        /// As little is in flight as there may be, but for what was before.
        case draining
        case known(Frame, sinceNs: UInt64)
    }

    private struct Round: Sendable {
        var frames = 0
        var isFull = false
        var fastest: Frame?
    }

    /// A frame that has been credited.
    struct Frame: Sendable {
        var byteCount: Int
        /// What was in flight when it was sent, itself included.
        var inFlightBytes: Int
        var tookNs: UInt64

        /// What went through the link meanwhile.
        var bytesPerNs: Double { Double(inFlightBytes) / Double(max(tookNs, 1)) }
    }

    /// Link time of one frame: what is urgent may have to wait for it.
    private static let frameNs = 130_000.0
    private static let queueNs = 150_000.0
    /// Of a long way, as a share of it: times vary with it, and what is urgent takes that long anyhow.
    private static let queueShare = 1.0 / 16
    private static let roundFrames = 8
    /// Of a round that seeks the rate: nothing shrinks by mistake yet.
    private static let firstFrames = 2
    /// Bounds of one step.
    private static let steps = 0.7...1.5
    /// What a round that shows less leaves of the rate: the link may have become slower.
    private static let rateKept = 0.98
    /// Until something is known.
    private static let assumedBytesPerNs = 0.125
    /// Believed of what others say: on a faster link it is the processors that limit.
    private static let toldBytesPerNsMax = 1.25
    static let bytesMax = 8.0 * 1024 * 1024
    /// The way may have become longer: after so long it is measured anew, with as little in flight as there may be.
    private static let wayForNs: UInt64 = 10_000_000_000

    /// - Parameters:
    ///   - bytesPerNs: what others have seen of the link; nil: nothing.
    ///   - wayNs: of a small frame on an idle link; 0: not known.
    init(bytesPerNs: Double?, wayNs: Double) {
        self.bytesPerNs = min(bytesPerNs ?? Self.assumedBytesPerNs, Self.toldBytesPerNsMax)
        isStarting = bytesPerNs == nil
        bytes = isStarting ? bytesMin : filling(wayNs)
    }

    /// Pages of a frame.
    var framePages: Int { min(max(Int(bytesPerNs * Self.frameNs) / Limits.pageBytes, 1), Limits.batchPages) }
    private var frameBytes: Double { Double(framePages * Limits.pageBytes) }
    /// One frame is on the link while the next is made.
    var bytesMin: Double { 2.25 * frameBytes }

    /// On a slow link one frame, which takes longer than all else.
    private func queueMaxNs(_ wayNs: Double) -> Double {
        max(Self.queueNs, frameBytes / bytesPerNs, wayNs * Self.queueShare)
    }
    /// What fills a way of this length, and leaves the allowed queue.
    private func filling(_ wayNs: Double) -> Double {
        bounded(frameBytes + bytesPerNs * (wayNs + queueMaxNs(wayNs)))
    }
    private func bounded(_ bytes: Double) -> Double { min(max(bytes, bytesMin), Self.bytesMax) }

    /// - Parameters:
    ///   - isFull: the window, not the work, was what limited the sender.
    ///   - framesLeft: frames that are not credited.
    mutating func credited(_ frame: Frame, isFull: Bool, framesLeft: Int, nowNs: UInt64) {
        if besideNs(frame) < round.fastest.map(besideNs) ?? .infinity { round.fastest = frame }
        round.frames += 1
        round.isFull = round.isFull || isFull
        guard round.frames >= max(isStarting ? Self.firstFrames : Self.roundFrames, framesLeft),
            let fastest = round.fastest
        else { return }
        let isFull = round.isFull
        round = Round()
        if isFull { learnRate(fastest) }
        learnWay(fastest, isFull, nowNs)
    }

    /// A queue shows the rate. Without one the link is at least so fast; but the first bytes after a rest are often let
    /// through at once, however slow it is.
    private mutating func learnRate(_ fastest: Frame) {
        let steps = bytesPerNs * Self.steps.lowerBound...bytesPerNs * Self.steps.upperBound
        let shown = min(max(fastest.bytesPerNs, steps.lowerBound), steps.upperBound)
        if case .known(let least, _) = way, besideNs(fastest) - max(0, besideNs(least)) > Self.queueNs / 2 {
            bytesPerNs = shown
        } else {
            bytesPerNs = max(shown, bytesPerNs * Self.rateKept)
        }
    }

    /// By today's rate: a better one moves all times that are compared alike.
    private func besideNs(_ frame: Frame) -> Double { Double(frame.tookNs) - Double(frame.byteCount) / bytesPerNs }

    private mutating func learnWay(_ fastest: Frame, _ isFull: Bool, _ nowNs: UInt64) {
        switch way {
        case .draining: way = .unknown
        case .unknown:
            way = .known(fastest, sinceNs: nowNs)
            bytes = filling(max(0, besideNs(fastest)))
        case .known(let least, let sinceNs):
            if besideNs(fastest) <= besideNs(least) {
                way = .known(fastest, sinceNs: nowNs)
            } else if nowNs - sinceNs > Self.wayForNs {
                way = .draining
                isStarting = true
                bytes = bytesMin
                return
            }
            resize(max(0, min(besideNs(least), besideNs(fastest))), max(0, besideNs(fastest)), isFull)
        }
    }

    private mutating func resize(_ wayNs: Double, _ fastestNs: Double, _ isFull: Bool) {
        let allowedNs = queueMaxNs(wayNs)
        let ownNs = frameBytes / bytesPerNs
        if fastestNs - wayNs > allowedNs / 2 { isStarting = false }
        let step = isStarting ? Self.steps.upperBound : (ownNs + wayNs + allowedNs) / (ownNs + fastestNs)
        guard step < 1 || isFull else { return }
        bytes = bounded(bytes * min(max(step, Self.steps.lowerBound), Self.steps.upperBound))
    }
}
