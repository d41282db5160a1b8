internal import ApusMemory

/// How much may be on its way to somebody who shares the link with what is more urgent. A pure value: time comes in as numbers.
///
/// ```
///   took     |################################| a frame, from here to its credit
///   way      |###################|              the least that any took: its bytes on the link, there, back, the threads at both ends
///   queue                        |############| what is urgent waits behind it too
/// ```
///
/// The window is what fills the link and leaves the allowed queue: rate x (way + allowed). The way is the least that
/// was seen, the rate the most that some rounds of frames have shown, as in BBR: threads that wait for a processor make
/// frames late, and never early. A round is what is in flight, so that each sees what became of the one before. One that the
/// window did not limit says only that the link is at least so fast.
struct PushWindow: Sendable {
    /// In flight at most.
    private(set) var bytes = 0.0
    private var rate: Rate
    private var way = Way.unknown
    /// No queue has been seen in two rounds, one after the other, since the link was last unknown.
    private var isStarting: Bool
    private var hadQueue = false
    private var round = Round()

    /// The link's rate, as far as it has shown itself.
    var bytesPerNs: Double { rate.bytesPerNs }

    /// The most of the latest rounds: the first bytes after a rest are let through at once, however slow the link is, and a
    /// moment's disturbance is no slow link.
    private struct Rate: Sendable {
        private var older: Double
        private var newer = 0.0
        private var rounds = 0
        /// Then what they have shown is the older, and what was older is forgotten.
        private static let roundsMax = 8

        var bytesPerNs: Double { max(older, newer) }

        init(_ told: Double) { older = told }

        mutating func saw(_ shown: Double, isFull: Bool) {
            newer = max(newer, min(shown, bytesPerNs * PushWindow.step))
            guard isFull else { return }
            rounds += 1
            if rounds == Self.roundsMax { forget() }
        }

        /// What others have told, or was seen long ago.
        mutating func forget() {
            if newer > 0 { (older, newer, rounds) = (newer, 0, 0) }
        }
    }

    private enum Way: Sendable {
        case unknown
        /// As little is in flight as there may be, but for what was before.
        case draining
        case known(ns: UInt64, sinceNs: UInt64)
    }

    private struct Round: Sendable {
        var frames = 0
        var isFull = false
        var fastest: Frame?
    }

    /// A frame that has been credited.
    struct Frame: Sendable {
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
    /// What one round may add.
    fileprivate static let step = 1.5
    /// Until something is known: a frame is one page.
    private static let assumedBytesPerNs = 0.0125
    /// Believed of what others say: on a faster link it is the processors that limit.
    private static let toldBytesPerNsMax = 1.25
    static let bytesMax = 8.0 * 1024 * 1024
    /// The way may have become longer: after so long it is measured anew, with as little in flight as there may be.
    private static let wayForNs: UInt64 = 10_000_000_000

    /// - Parameters:
    ///   - bytesPerNs: what others have seen of the link; nil: nothing.
    ///   - wayNs: of a small frame on an idle link; 0: not known.
    init(bytesPerNs: Double?, wayNs: Double) {
        rate = Rate(min(bytesPerNs ?? Self.assumedBytesPerNs, Self.toldBytesPerNsMax))
        isStarting = bytesPerNs == nil
        bytes = isStarting ? bytesMin : filling(wayNs)
    }

    /// Pages of a frame; of a long way more, for only so many frames may be in flight.
    var framePages: Int {
        Self.pages(max(bytesPerNs * Self.frameNs, bytes * 2 / Double(Limits.batchesInFlight)))
    }
    private var frameBytes: Double { Double(framePages * Limits.pageBytes) }
    /// One frame is on the link while the next is made.
    var bytesMin: Double { 2.25 * Double(Self.pages(bytesPerNs * Self.frameNs) * Limits.pageBytes) }
    private static func pages(_ bytes: Double) -> Int {
        min(max(Int(bytes) / Limits.pageBytes, 1), Limits.batchPages)
    }

    /// On a slow link one frame, which takes longer than all else.
    private func queueMaxNs(_ wayNs: Double) -> Double {
        max(Self.queueNs, frameBytes / bytesPerNs, wayNs * Self.queueShare)
    }
    /// What fills a way of this length, and leaves the allowed queue.
    private func filling(_ wayNs: Double) -> Double {
        bounded(bytesPerNs * (wayNs + queueMaxNs(wayNs)))
    }
    private func bounded(_ bytes: Double) -> Double { min(max(bytes, bytesMin), Self.bytesMax) }

    /// - Parameters:
    ///   - isFull: the window, not the work, was what limited the sender.
    ///   - framesLeft: frames that are not credited.
    mutating func credited(_ frame: Frame, isFull: Bool, framesLeft: Int, nowNs: UInt64) {
        if frame.tookNs < round.fastest?.tookNs ?? .max { round.fastest = frame }
        round.frames += 1
        round.isFull = round.isFull || isFull
        guard round.frames >= max(isStarting ? Self.firstFrames : Self.roundFrames, framesLeft),
            let fastest = round.fastest
        else { return }
        let isFull = round.isFull
        round = Round()
        rate.saw(fastest.bytesPerNs, isFull: isFull)
        learnWay(fastest.tookNs, isFull, nowNs)
    }

    /// A larger frame takes longer, but its own time on the link is next to nothing of the way, or of what is allowed. (Taken off by
    /// a rate that is not known yet, it would seem to be all of the way, and the rest a queue.)
    private mutating func learnWay(_ fastestNs: UInt64, _ isFull: Bool, _ nowNs: UInt64) {
        switch way {
        case .draining: way = .unknown
        case .unknown:
            way = .known(ns: fastestNs, sinceNs: nowNs)
            if !isStarting { bytes = filling(Double(fastestNs)) }
        case .known(let leastNs, let sinceNs):
            if fastestNs <= leastNs {
                way = .known(ns: fastestNs, sinceNs: nowNs)
            } else if nowNs - sinceNs > Self.wayForNs {
                way = .draining
                isStarting = true
                bytes = bytesMin
                return
            }
            let wayNs = min(leastNs, fastestNs)
            resize(Double(wayNs), queueNs: Double(fastestNs - wayNs), isFull)
        }
    }

    private mutating func resize(_ wayNs: Double, queueNs: Double, _ isFull: Bool) {
        let hasQueue = queueNs > queueMaxNs(wayNs) / 2
        if isStarting && hasQueue && hadQueue {
            isStarting = false
            rate.forget()
        }
        hadQueue = hasQueue
        // Without a queue nothing shows the rate but what goes through a window that was larger.
        let mayGrow = isFull && !hasQueue
        if isStarting {
            if mayGrow { bytes = bounded(bytes * Self.step) }
        } else {
            let filling = filling(wayNs)
            bytes = mayGrow ? max(filling, bounded(bytes + frameBytes)) : filling
        }
    }
}
