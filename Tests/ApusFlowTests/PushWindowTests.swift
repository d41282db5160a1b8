import ApusMemory
import Testing

@testable import ApusFlow

@Suite struct PushWindowTests {
    /// What a link is for its sender.
    struct Way: Sendable, CustomTestStringConvertible {
        var megabits: Double
        var ms: Double
        var bytesPerNs: Double { megabits / 8000 }
        var testDescription: String { "\(megabits) Mb/s, \(ms) ms" }

        static let all = [100.0, 1000].flatMap { megabits in
            [0.1, 1, 5, 20].map { Way(megabits: megabits, ms: $0) }
        }
        /// One frame, or what the window may leave.
        var queueMs: Double { max(0.15, 4096 / bytesPerNs / 1e6, ms / 16) }
    }

    struct Outcome {
        var framePages = 0
        /// Of the link.
        var used = 0.0
        /// Milliseconds that an urgent page would wait behind what is in the queue when a frame joins it.
        var queueMs: [Double] = []
        var meanMs: Double { queueMs.reduce(0, +) / Double(max(queueMs.count, 1)) }
        /// All but one in a hundred.
        var mostMs: Double { queueMs.sorted()[queueMs.count * 99 / 100] }
    }

    /// A link of some rate and length behind one queue, and a sender that keeps its window full.
    private struct Link {
        let way: Way
        /// What the sender is told of the rate; nil: nothing.
        var told: Double?
        /// Milliseconds for which the receiver's processor is busy with something else, every 4 ms.
        var busyMs = 0.0
        /// The way takes up to so much longer, as chance has it.
        var jitterMs = 0.0
        /// After a rest so much passes at once, in milliseconds of the link.
        var burstMs = 0.0
        /// A frame of this share waits for a processor, up to 3 ms, and all that are behind it.
        var lateShare = 0.0
        /// Until then pages become next to nothing on the wire, and so many frames may be in flight.
        var smallUntilMs = 0.0
        static let framesMax = 256
        /// From then on the way is twice as long, and the rate is half of it.
        var worseAtMs = Double.infinity

        func run(ms: Double, since: Double) -> Outcome {
            var window = PushWindow(bytesPerNs: told, wayNs: told == nil ? 0 : way.ms * 1e6)
            var random = SplitMix(state: 7)
            var inFlight: [(credit: Double, sent: Double, bytes: Int, inFlight: Int)] = []
            var (nowNs, freeAt, inFlightBytes, sentBytes) = (0.0, 0.0, 0, 0)
            var (outcome, isFull) = (Outcome(), false)
            while nowNs < ms * 1e6 {
                let worse = nowNs >= worseAtMs * 1e6 ? 2.0 : 1
                let isSmall = nowNs < smallUntilMs * 1e6
                let frame = isSmall ? 60 : window.framePages * Limits.pageBytes
                let hasWindow = inFlight.isEmpty || Double(inFlightBytes + frame) <= window.bytes
                isFull = isFull || !hasWindow
                if hasWindow && inFlight.count < Self.framesMax {
                    freeAt = max(freeAt, nowNs - burstMs * 1e6)
                    let begins = max(nowNs, freeAt)
                    freeAt += Double(frame) / way.bytesPerNs * worse
                    // Credits come in order, whatever chance has in mind.
                    var credit = max(
                        max(nowNs, freeAt) + way.ms * 1e6 * worse + 1e6
                            * Double.random(in: 0...jitterMs, using: &random),
                        inFlight.last?.credit ?? 0)
                    if .random(in: 0..<1, using: &random) < lateShare {
                        credit += 3e6 * Double.random(in: 0...1, using: &random)
                    }
                    let phase = credit.truncatingRemainder(dividingBy: 4e6)
                    if phase < busyMs * 1e6 { credit += busyMs * 1e6 - phase }
                    inFlightBytes += frame
                    inFlight.append((credit, nowNs, frame, inFlightBytes))
                    if nowNs > since * 1e6 {
                        sentBytes += frame
                        outcome.queueMs.append((begins - nowNs) / 1e6)
                    }
                } else {
                    let first = inFlight.removeFirst()
                    inFlightBytes -= first.bytes
                    nowNs = max(nowNs, first.credit)
                    window.credited(
                        .init(
                            inFlightBytes: first.inFlight, tookNs: UInt64(nowNs - first.sent)),
                        isFull: isFull, framesLeft: inFlight.count, nowNs: UInt64(nowNs))
                    isFull = false
                }
            }
            let worse = worseAtMs < ms ? 2.0 : 1
            outcome.framePages = window.framePages
            outcome.used = Double(sentBytes) / ((ms - since) * 1e6) / way.bytesPerNs * worse
            return outcome
        }
    }

    /// Settled, whatever the sender was told.
    @Test(arguments: Way.all, [nil, 0.5, 1, 2])
    func theLinkIsFullAndTheQueueShort(_ way: Way, toldShare: Double?) {
        let outcome = Link(way: way, told: toldShare.map { $0 * way.bytesPerNs }).run(ms: 3000, since: 1500)
        #expect(outcome.used > 0.9, "\(outcome.used)")
        // A frame that is on the link already is not in the window's hand.
        let frameMs = max(0.13, 4096 / way.bytesPerNs / 1e6)
        #expect(outcome.meanMs < way.queueMs + frameMs, "\(outcome.meanMs) ms")
        #expect(outcome.mostMs < 3 * way.queueMs + frameMs, "\(outcome.mostMs) ms")
    }

    /// There are often no more than a few hundred pages to push: no time to find the rate first.
    @Test(arguments: Way.all)
    func aLinkThatIsKnownIsFullAtOnce(_ way: Way) {
        let outcome = Link(way: way, told: way.bytesPerNs).run(ms: max(100, 20 * way.ms), since: 0)
        #expect(outcome.used > 0.9, "\(outcome.used)")
    }

    /// A way of some milliseconds is never the same twice.
    @Test(arguments: Way.all)
    func aWayThatVariesIsFullAllTheSame(_ way: Way) {
        let jitterMs = max(0.1, way.ms / 8)
        let outcome = Link(way: way, told: way.bytesPerNs, jitterMs: jitterMs).run(ms: 3000, since: 500)
        #expect(outcome.used > 0.9, "\(outcome.used)")
        let frameMs = max(0.13, 4096 / way.bytesPerNs / 1e6)
        #expect(outcome.mostMs < 2 * way.queueMs + 2 * frameMs + jitterMs, "\(outcome.mostMs) ms")
    }

    /// A shaper lets the first bytes through at the speed of the memory.
    @Test(arguments: Way.all)
    func aBurstIsNotTakenForTheLink(_ way: Way) {
        let outcome = Link(way: way, told: way.bytesPerNs, burstMs: 4).run(ms: 500, since: 250)
        #expect(outcome.used > 0.9, "\(outcome.used)")
        #expect(Double(outcome.framePages * Limits.pageBytes) / way.bytesPerNs < 400_000, "\(outcome.framePages) pages")
        let frameMs = max(0.13, 4096 / way.bytesPerNs / 1e6)
        #expect(outcome.mostMs < 3 * way.queueMs + 2 * frameMs, "\(outcome.mostMs) ms")
    }

    @Test(arguments: Way.all)
    func aBusyReceiverDoesNotCloseTheWindow(_ way: Way) {
        let outcome = Link(way: way, told: way.bytesPerNs, busyMs: 0.5).run(ms: 3000, since: 500)
        #expect(outcome.used > 0.8, "\(outcome.used)")
    }

    /// Threads that wait for a processor make frames late, and never early.
    @Test(arguments: Way.all)
    func lateFramesAreNoSlowLink(_ way: Way) {
        let outcome = Link(way: way, told: way.bytesPerNs, lateShare: 0.02).run(ms: 3000, since: 500)
        // A frame of 0.13 ms in fifty that stops the others for 1.5 ms leaves them 0.8 of the time, if nothing is behind it.
        #expect(outcome.used > 0.75, "\(outcome.used)")
    }

    /// Pages of zeros, or nearly: the count of frames is the limit, and shows nothing of the link.
    @Test(arguments: Way.all)
    func smallPagesAreNoSlowLink(_ way: Way) {
        let outcome = Link(way: way, told: way.bytesPerNs, smallUntilMs: 1000).run(ms: 2000, since: 1100)
        #expect(outcome.used > 0.9, "\(outcome.used)")
    }

    /// Taken for a queue at first, until the way is measured anew.
    @Test(arguments: Way.all)
    func aLinkThatBecomesLongAndSlowIsNoticed(_ way: Way) {
        let outcome = Link(way: way, told: way.bytesPerNs, worseAtMs: 1000).run(ms: 16_000, since: 12_500)
        #expect(outcome.used > 0.9, "\(outcome.used)")
        let frameMs = max(0.13, 2 * 4096 / way.bytesPerNs / 1e6)
        #expect(outcome.mostMs < 4 * way.queueMs + 2 * frameMs, "\(outcome.mostMs) ms")
    }

    @Test func theWindowKeepsWithinItsBounds() {
        var window = PushWindow(bytesPerNs: 1e6, wayNs: 1e9)
        #expect(window.bytes == PushWindow.bytesMax)
        for second in 1...100 as ClosedRange<UInt64> {
            for _ in 0..<10 {
                window.credited(
                    .init(inFlightBytes: 1, tookNs: second % 2 * 1_000_000_000), isFull: true,
                    framesLeft: 0, nowNs: second * 1_000_000_000)
            }
            #expect(window.bytes >= Double(Limits.pageBytes) && window.bytes <= PushWindow.bytesMax)
            #expect((1...Limits.batchPages).contains(window.framePages))
        }
    }
}
