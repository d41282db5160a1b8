import ApusControl
import ApusMemory
import Foundation
import Testing

/// Thousands of worlds per run; `APUS_SIM_SEED=n` replays one with its story.
@Suite struct SessionSimulationTests {
    static let worldCount: UInt64 = 6_000

    /// One world from one seed: the seed also chooses its length, its faults and whether the guest was paused.
    static func world(_ seed: UInt64, sabotage: Sabotage = .none, tracing: Bool = false) -> (World, Violation?) {
        var dice = Seed(state: seed ^ 0x5eed)
        var world = World(
            seed: seed, guestRunning: !dice.chance(15), resumes: !dice.chance(20), pulls: dice.chance(50),
            sabotage: sabotage, tracing: tracing)
        world.collectsMarks = true
        do {
            try world.wander(steps: 60 + dice.below(140), faults: dice.below(6))
            return (world, nil)
        } catch {
            return (world, (error as? Violation) ?? Violation(text: "\(error)"))
        }
    }

    static func story(_ seed: UInt64) -> String {
        let (world, violation) = world(seed, tracing: true)
        return (world.trace ?? []).joined(separator: "\n") + "\n=> \(violation?.text ?? "fine")"
    }

    @Test func randomWorldsAreSafe() {
        if let text = ProcessInfo.processInfo.environment["APUS_SIM_SEED"], let seed = UInt64(text) {
            print(Self.story(seed))
            let (_, violation) = Self.world(seed)
            #expect(violation == nil, "\(violation?.text ?? "")")
            return
        }
        var marks: Set<String> = []
        var ends: [String: Int] = [:]
        for seed in 1...Self.worldCount {
            let (world, violation) = Self.world(seed)
            if let violation {
                Issue.record("APUS_SIM_SEED=\(seed): \(violation.text)\n\(Self.story(seed))")
                return
            }
            marks.formUnion(world.marks)
            ends[world.a?.state.name ?? "none", default: 0] += 1
        }
        print("session worlds: \(ends.sorted { $0.key < $1.key })")
        // A simulation that never gets somewhere proves nothing about it.
        let wanted: Set<String> = [
            "connecting", "opening", "transferring", "switching", "orphaned", "releasing", "deciding", "undecidable",
            "committed", "aborting", "recovering", "completed", "kept", "lost", "preparing", "receiving", "inDoubt",
            "starting", "discarded", "reconnecting", "cutOff", "resumed",
            "serving", "pulling", "served", "whole",
        ]
        #expect(wanted.subtracting(marks).isEmpty, "never visited: \(wanted.subtracting(marks))")
    }

    /// Each mistake must be found, or the checker is blind to it.
    @Test(arguments: Sabotage.allCases.filter { $0 != .none })
    func sabotageIsCaught(_ sabotage: Sabotage) {
        for seed in 1...2_000 as ClosedRange<UInt64> where Self.world(seed, sabotage: sabotage).1 != nil { return }
        // Some take two faults at exact places; there are only so many.
        for step in 0..<60 {
            for later in step..<step + 9 {
                let isOutage = sabotage == .releasingIsNotOnDisk
                let faults: [(step: Int, fault: Fault)] =
                    isOutage ? [(step, .powerLossA)] : [(step, .killAgentA), (later, .killSource)]
                var world = World(seed: UInt64(isOutage ? later : 7), sabotage: sabotage)
                do {
                    let order = SessionCrashPointTests.orders[0]
                    try world.march(order: order, faults: faults, repair: 9, steps: SessionCrashPointTests.steps)
                } catch {
                    return
                }
            }
        }
        Issue.record("\(sabotage) went unnoticed")
    }
}

/// Every crash point, not a sample: the happy path takes fewer than `steps` moves, and each fault is put before each.
@Suite struct SessionCrashPointTests {
    static let steps = 90
    static let orders: [[Move]] = [
        Move.allCases,
        [.agentB, .deliverToA, .deliverToB, .destination, .source, .agentA, .gate, .push, .retryA, .retryB],
        [.source, .destination, .deliverToB, .agentA, .gate, .agentB, .deliverToA, .push, .retryB, .retryA],
        [.agentA, .source, .agentB, .destination, .gate, .deliverToA, .deliverToB, .push, .retryB, .retryA],
    ]

    static func run(
        _ order: [Move], _ faults: [(step: Int, fault: Fault)], repair: Int, guestRunning: Bool, pulls: Bool = false
    ) throws -> World {
        var world = World(seed: 7, guestRunning: guestRunning, pulls: pulls)
        do {
            try world.march(order: order, faults: faults, repair: repair, steps: steps)
        } catch let violation as Violation {
            var again = World(seed: 7, guestRunning: guestRunning, pulls: pulls, tracing: true)
            try? again.march(order: order, faults: faults, repair: repair, steps: steps)
            let story = (again.trace ?? []).joined(separator: "\n")
            throw Violation(text: "\(faults) repaired after \(repair): \(violation.text)\n\(story)")
        }
        return world
    }

    @Test func theHappyPathCompletesWithPagesThatFollow() throws {
        for order in Self.orders {
            let world = try Self.run(order, [], repair: 0, guestRunning: true, pulls: true)
            #expect(world.aRecord?.stage == .completed)
            #expect(world.source == .ended && world.destination == .running)
            #expect(world.pull.residence.isWhole && !world.pull.isPagerInside)
        }
    }

    @Test(arguments: [true, false]) func theHappyPathCompletes(guestRunning: Bool) throws {
        for order in Self.orders {
            let world = try Self.run(order, [], repair: 0, guestRunning: guestRunning)
            #expect(world.aRecord?.stage == .completed)
            #expect(world.source == .ended)
            #expect((world.destination == .running) == guestRunning)
        }
    }

    /// A connection lost while the guest runs costs nothing but time, at whatever step, and so does a second one on the
    /// way back.
    @Test func aLossWhileTheGuestRunsIsOutlived() throws {
        var resumed = 0
        for order in Self.orders {
            for step in 0..<Self.steps {
                for later in [nil, 1, 2, 3, 5, 8, 13] as [Int?] {
                    var world = World(seed: UInt64(step * 100 + (later ?? 0)))
                    world.collectsMarks = true
                    let losses = [step] + (later.map { [step + $0] } ?? [])
                    for at in 0...losses[losses.count - 1] {
                        if losses.contains(at) { try world.inject(.dropLink) }
                        guard world.source == .idle || world.source == .active else { break }
                        guard let move = order.first(where: { world.isEnabled($0) }) else { break }
                        try world.perform(move)
                    }
                    let isLost = world.a?.phase == .transferring && !world.linkUp && world.source == .active
                    guard isLost else { continue }
                    try world.heal()
                    let end = world.aRecord?.stage
                    // QEMU may stop its guest just then; that ends the job, and nothing else does.
                    #expect(end == .completed || end == .kept(.connectionLost), "\(losses): \(String(describing: end))")
                    if end == .completed, world.marks.contains("resumed") { resumed += 1 }
                }
            }
        }
        #expect(resumed > 100, "only \(resumed) worlds resumed")
    }

    @Test func everySingleFaultAtEveryStep() throws {
        for order in Self.orders {
            for (guestRunning, pulls) in [(true, false), (true, true), (false, false)] {
                for fault in Fault.allCases {
                    for step in 0..<Self.steps {
                        for repair in fault.breaksSomething ? [0, 4, 1_000] : [0] {
                            _ = try Self.run(
                                order, [(step, fault)], repair: repair, guestRunning: guestRunning, pulls: pulls)
                        }
                    }
                }
            }
        }
    }

    /// The faults that interact: two of them, at every pair of steps.
    @Test func everyPairOfCrashes() throws {
        let kinds: [Fault] = [.killAgentA, .killAgentB, .dropLink, .killSource, .killDestination]
        for first in kinds {
            for second in kinds {
                for step in 0..<60 {
                    for later in step..<min(step + 16, 66) {
                        for pulls in [false, true] {
                            _ = try Self.run(
                                Self.orders[0], [(step, first), (later, second)], repair: 9, guestRunning: true,
                                pulls: pulls)
                        }
                    }
                }
            }
        }
    }
}

extension Fault {
    /// Something stays broken until it is repaired; the rest are single events.
    var breaksSomething: Bool {
        switch self {
        case .killAgentA, .killAgentB, .dropLink, .partition, .powerLossA, .hostAGone, .hostBGone: true
        case .killSource, .killDestination, .abortByUser, .abortAtDestination, .deadline, .silentToA, .silentToB,
            .switchTimeout, .localFailureA, .recordFailsA, .recordFailsB, .sourceRefusesShut, .loadFails,
            .prepareFails, .startFails, .reconnectLimitA, .reconnectLimitB:
            false
        }
    }
}
