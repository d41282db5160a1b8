import ApusMemory
import Testing

@testable import ApusFlow

@Suite struct PushWindowTests {
    /// A link of some rate and length behind one queue, and a sender that keeps its window full.
    private struct Link {
        let bytesPerNs: Double
        let wayNs: Double
        /// Milliseconds for which the receiver's processor is busy with something else, every 4 ms.
        var busyNs = 0.0
        /// The way takes up to so much longer, as chance has it.
        var jitterNs = 0.0

        /// - Returns: bytes per nanosecond that got through, and nanoseconds in the queue on average, once it has settled.
        func run(ms: Double) -> (bytesPerNs: Double, queueNs: Double) {
            var window = PushWindow()
            var random = SplitMix(state: 7)
            let frame = 16_384.0
            var inFlight: [(credit: Double, sent: Double)] = []
            var (nowNs, freeAt, sentBytes, queued, frames) = (0.0, 0.0, 0.0, 0.0, 0)
            while nowNs < ms * 1e6 {
                if Double(inFlight.count + 1) * frame <= window.bytes {
                    let begins = max(nowNs, freeAt)
                    freeAt = begins + frame / bytesPerNs
                    // Credits come in order, whatever chance has in mind.
                    var credit = max(
                        freeAt + wayNs + Double.random(in: 0...jitterNs, using: &random), inFlight.last?.credit ?? 0)
                    let phase = credit.truncatingRemainder(dividingBy: 4e6)
                    if phase < busyNs { credit += busyNs - phase }
                    inFlight.append((credit, nowNs))
                    if nowNs > ms * 5e5 {
                        sentBytes += frame
                        queued += begins - nowNs
                        frames += 1
                    }
                } else {
                    let first = inFlight.removeFirst()
                    nowNs = max(nowNs, first.credit)
                    window.credited(
                        tookNs: UInt64(nowNs - first.sent), isFull: true, inFlight: inFlight.count, nowNs: UInt64(nowNs)
                    )
                }
            }
            return (sentBytes / (ms * 5e5), queued / Double(max(frames, 1)))
        }
    }

    @Test(arguments: [(0.125, 100_000.0), (0.125, 5_000_000.0), (1.25, 50_000.0), (0.0125, 1_000_000.0)])
    func theLinkIsFullAndTheQueueShort(bytesPerNs: Double, wayNs: Double) {
        let (rate, queueNs) = Link(bytesPerNs: bytesPerNs, wayNs: wayNs).run(ms: 3000)
        #expect(rate > 0.9 * bytesPerNs, "\(rate)")
        // The queue may be as long as allowed, or as one frame.
        let allowed = max(Double(PushWindow.queueNs), wayNs / 8, PushWindow.bytesMin / bytesPerNs)
        #expect(queueNs < 2 * allowed, "\(queueNs / 1e6) ms")
    }

    @Test func aBusyReceiverDoesNotCloseTheWindow() {
        let (rate, _) = Link(bytesPerNs: 0.125, wayNs: 100_000, busyNs: 500_000).run(ms: 3000)
        #expect(rate > 0.75 * 0.125, "\(rate)")
    }

    /// A way of some milliseconds is never the same twice.
    @Test func aLongWayIsFullAllTheSame() {
        let (rate, queueNs) = Link(bytesPerNs: 0.125, wayNs: 5_000_000, jitterNs: 600_000).run(ms: 2000)
        #expect(rate > 0.8 * 0.125, "\(rate)")
        #expect(queueNs < 1_500_000, "\(queueNs / 1e6) ms")
    }

    @Test func aLongerWayIsNoticed() {
        var window = PushWindow()
        var nowNs: UInt64 = 0
        func credit(_ tookNs: UInt64, _ times: Int) {
            for _ in 0..<times {
                nowNs += 1_000_000
                window.credited(tookNs: tookNs, isFull: true, inFlight: 0, nowNs: nowNs)
            }
        }
        credit(200_000, 200)
        let before = window.bytes
        // Taken for a queue at first.
        credit(2_000_000, 500)
        #expect(window.bytes == PushWindow.bytesMin && before > window.bytes)
        credit(2_000_000, 20_000)
        #expect(window.bytes > 4 * PushWindow.bytesMin)
    }
}
