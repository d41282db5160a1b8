import Foundation
import Testing

/// Hundreds of worlds per run; `APUS_LINES_SEED=n swift test --filter LineSimulation` replays one with its story.
@Suite struct LineSimulationTests {
    static let worldCount: UInt64 = 250

    private struct Ending {
        var violation: String?
        var marks: Set<String>
        var story: [String]
    }

    private static func world(_ seed: UInt64, _ sabotage: LineSabotage = .none) throws -> Ending {
        let world = try LineWorld(seed: seed, sabotage: sabotage)
        do {
            try world.run(steps: 300 + Int(seed % 7) * 150)
            return Ending(violation: nil, marks: world.marks, story: world.story)
        } catch {
            let text = (error as? LineViolation)?.text ?? "\(error)"
            return Ending(violation: text, marks: world.marks, story: world.story)
        }
    }

    @Test func randomWorldsKeepTheirMemory() throws {
        if let text = ProcessInfo.processInfo.environment["APUS_LINES_SEED"], let seed = UInt64(text) {
            let ending = try Self.world(seed)
            print(ending.story.joined(separator: "\n"))
            #expect(ending.violation == nil)
            return
        }
        var marks: Set<String> = []
        for seed in 1...Self.worldCount {
            let ending = try Self.world(seed)
            if let violation = ending.violation {
                Issue.record("\(violation)\nAgain: APUS_LINES_SEED=\(seed) swift test --filter LineSimulation")
                return
            }
            marks.formUnion(ending.marks)
        }
        // A simulation in which something never happens proves nothing about it.
        #expect(marks == ["same", "lines", "aged", "patchable", "held", "loss", "loss of pages"])
    }

    /// Each mistake must be found, or the checker is blind to it.
    @Test(arguments: LineSabotage.allCases.filter { $0 != .none }) func sabotageIsCaught(_ sabotage: LineSabotage)
        throws
    {
        for seed in 1...Self.worldCount where try Self.world(seed, sabotage).violation != nil { return }
        Issue.record("\(sabotage) went unnoticed")
    }
}
