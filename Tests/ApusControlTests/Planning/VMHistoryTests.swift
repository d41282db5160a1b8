import Foundation
import Testing

@testable import ApusControl
@testable import ApusFlow

@Suite("VM history") struct VMHistoryTests {
    @Test("pages that came again unchanged do not make those that had changed cheaper") func againBytes() {
        var history = VMHistory()
        let device = UInt64(SwitchGate.deviceBytes)
        history.learn(
            VMHistory.Sent(
                firstPages: 10_000, firstBytes: 20_000_000, pages: 13_000, samePages: 2000,
                wireBytes: 20_000_000 + 1000 * 4106 + device))
        #expect(history.firstBytesPerPage == 2000 && history.dataPages == 10_000)
        #expect(history.againBytesPerPage == 4106)
        // Too few to learn from.
        history.learn(
            VMHistory.Sent(
                firstPages: 10_000, firstBytes: 20_000_000, pages: 13_000, samePages: 2990, wireBytes: 20_100_000))
        #expect(history.againBytesPerPage == 4106)
    }

    @Test("how busy it was is remembered, and may be unknown") func demand() throws {
        var seen = WorkingSetHistory()
        for ms in [10.0, 50, 400] { seen.add(.init(endMs: ms, spanMs: ms, pages: 10 * ms)) }
        seen.demand = CPUDemand(share: 0.2)
        var history = VMHistory()
        history.learn(seen, atHour: 3)
        #expect(history.prior(atHour: 3).curve?.demand == CPUDemand(share: 0.2))
        seen.demand = nil
        let old = try JSONDecoder().decode(WorkingSetHistory.self, from: try JSONEncoder().encode(seen))
        #expect(old == seen && old.curve?.demand == .whole)
    }
}
