import ApusAPI
import Foundation
import Testing

@testable import ApusControl
@testable import ApusFlow

@Suite("mode choice") struct ModeChoiceTests {
    private func option(_ port: MemoryPort, _ mode: MigrationMode, _ ending: PlanOption.Ending) -> PlanOption {
        let range = PlanRange(low: 1, likely: 2, high: 3)
        return PlanOption(
            port: port, mode: mode, ending: ending, wireBytes: range, totalMs: range, downtimeMs: range)
    }

    private func plan(_ options: [PlanOption]) -> PlanReport {
        PlanReport(
            vm: "web", host: "b", takenAt: Date(), maxDowntimeMs: 300, linkBytesPerS: 1e8, roundTripMs: 0.2,
            memoryBytes: 1 << 30, zeroShare: 0.5, bytesPerPage: 2000, workingSetBytes: 1e6, writtenBytesPerS: 1e6,
            options: options)
    }

    private func way(
        _ allow: [MigrationMeans]? = nil, plan: PlanReport? = nil, known: Forecast.Ending? = nil,
        _ change: (inout MigrateRequest) -> Void = { _ in }
    ) -> ChosenWay? {
        var request = MigrateRequest(vm: "web", host: "b", allow: allow)
        change(&request)
        let forecast = known.map { Forecast(ending: $0, rounds: 3, wireBytes: 1, totalMs: 1, downtimeMs: 1) }
        return ModeChoice(request: request, config: .init(), plan: plan, known: forecast).way
    }

    private var busy: PlanReport {
        plan([
            option(.direct, .dsm, .slowed), option(.direct, .hybrid, .follows), option(.direct, .postcopy, .follows),
            option(.direct, .dsm, .tooBusy),
        ])
    }

    @Test("what is said is not chosen") func said() {
        #expect(way(plan: busy) { $0.mode = .plain } == nil)
    }

    @Test("the best way of a plan is taken, as far as it is allowed") func planned() {
        #expect(way(plan: busy) == ChosenWay(mode: .dsm, basis: .plan))
        #expect(way([.postcopy], plan: busy) == ChosenWay(mode: .hybrid, basis: .plan))
        #expect(way([.throttle, .postcopy], plan: busy) == ChosenWay(mode: .dsm, basis: .plan))
        #expect(way([], plan: busy) == ChosenWay(mode: .dsm, basis: .firstPass))
    }

    @Test("a plan counts more than history, history more than nothing") func order() {
        #expect(way([.postcopy], plan: busy, known: .converges)?.basis == .plan)
        #expect(way(known: .converges) == ChosenWay(mode: .dsm, basis: .history))
        #expect(way() == ChosenWay(mode: .dsm, basis: .firstPass))
    }

    @Test("history of a guest that is too busy moves it first only if that is allowed, and can be") func remembered() {
        #expect(way([.postcopy], known: .tooBusy) == ChosenWay(mode: .hybrid, basis: .history))
        #expect(way([.throttle], known: .tooBusy)?.basis == .firstPass)
        #expect(way([.postcopy], known: .tooBusy) { $0.port = .stream }?.basis == .firstPass)
    }

    @Test("the port is taken from a plan that found only one, unless memory is to be moved for the other") func port() {
        let stream = plan([option(.stream, .dsm, .converges)])
        #expect(way(plan: stream) == ChosenWay(mode: .dsm, port: .stream, basis: .plan))
        #expect(way(plan: stream) { $0.rebaseMemory = true }?.port == nil)
        #expect(way(plan: stream) { $0.port = .direct }?.basis == .firstPass)
        let both = plan([option(.direct, .hybrid, .follows), option(.stream, .dsm, .converges)])
        #expect(way([.postcopy], plan: both) { $0.port = .stream } == ChosenWay(mode: .dsm, basis: .plan))
    }

    @Test("memory that is to be compared before the switch comes before the guest") func verified() {
        #expect(way([.postcopy], plan: busy) { $0.verify = true } == ChosenWay(mode: .dsm, basis: .firstPass))
    }
}
