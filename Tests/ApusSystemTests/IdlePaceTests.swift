import ApusSystem
import Testing

@Suite struct IdlePaceTests {
    @Test func whoeverHasTheCPUForItselfGoesOn() {
        #expect(IdlePace.pauseMs(workedNs: 1_000_000, waitedNs: 0) == 0)
        #expect(IdlePace.pauseMs(workedNs: 1_000_000, waitedNs: 50_000) == 0)
    }

    @Test func whoeverIsInTheWayTakesAFiftieth() {
        #expect(IdlePace.pauseMs(workedNs: 1_000_000, waitedNs: 500_000) == 49)
        // However long a piece was, it is soon tried again.
        #expect(IdlePace.pauseMs(workedNs: 1_000_000_000, waitedNs: 900_000_000) == 250)
    }
}
