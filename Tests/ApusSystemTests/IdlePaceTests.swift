import ApusSystem
import Foundation
import Testing

@Suite struct IdlePaceTests {
    @Test func whoeverHasTheCPUForItselfGoesOn() {
        #expect(IdlePace.pauseMs(workedNs: 1_000_000, waitedNs: 0) == 0)
        #expect(IdlePace.pauseMs(workedNs: 1_000_000, waitedNs: 50_000) == 0)
    }

    /// Two threads for each CPU want it, and this one is due.
    @Test(.timeLimit(.minutes(1))) func whoeverIsDueDoesNotWait() throws {
        let ends = Latch()
        let others = try (0..<2 * ProcessInfo.processInfo.processorCount).map { _ in
            try WorkerThread("spin") { while !ends.wait(ms: 0) {} }
        }
        defer {
            ends.open()
            for other in others { other.join() }
        }
        func pausedMs(_ until: Instant) -> Double {
            var pace = IdlePace(until: until)
            var pausedMs = 0.0
            for _ in 0..<40 {
                let startNs = Instant.threadCPUNs()
                while Instant.threadCPUNs() - startNs < 1_000_000 {}
                let (began, waitedNs) = (Instant.now(), Instant.threadQueuedNs())
                pace.giveWay()
                pausedMs += Instant.now().ms(since: began) - Double(Instant.threadQueuedNs() - waitedNs) / 1e6
            }
            return pausedMs
        }
        #expect(pausedMs(.now()) < 5)
        #expect(pausedMs(.now().adding(ms: 60_000)) > 20, "nobody was in its way")
    }

    @Test func whoeverIsInTheWayTakesAFiftieth() {
        #expect(IdlePace.pauseMs(workedNs: 1_000_000, waitedNs: 500_000) == 49)
        // However long a piece was, it is soon tried again.
        #expect(IdlePace.pauseMs(workedNs: 1_000_000_000, waitedNs: 900_000_000) == 250)
    }
}
