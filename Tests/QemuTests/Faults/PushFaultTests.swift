import ApusAPI
import ApusLab
import Foundation
import Testing

extension RealGuests {
    /// Pages that nobody has asked for: when they begin to come, and what an agent leaves that ends in the middle of one.
    @Suite(.enabled(if: HostPair.canMakeNamespaces, "needs root")) struct PushFaultTests {
        /// Held before it may run anywhere, the guest gets what it lacks all the same; and stays where it is when it is not to
        /// move after all.
        @Test(.timeLimit(.minutes(3))) func pagesComeBeforeTheGuestRuns() async throws {
            try await FaultStage.with(mode: .postcopy, recordMs: 0) { stage in
                try await fault("abort", "after pages were pushed to a guest that never ran") {
                    let job = try await stage.begin(.stopped, holdMs: 3000)
                    try await expectPushes(stage)
                    try await stage.source.apus(["job", "abort", job.id])
                    return try await stage.settle(job, .aborted)
                }
                try await fault("none", "and the guest finds them there") {
                    // An agent holds once in its life.
                    try await stage.rehearse()
                    let job = try await stage.begin(.prepared, holdMs: 3000)
                    try await expectPushes(stage)
                    let ended = try await stage.settle(job, .completed, moved: true, seconds: 60)
                    let pull = try #require(ended.summary?.pull)
                    #expect(pull.pushedPages > 2000, "\(pull)")
                    return ended
                }
            }
        }

        /// The destination has its device state and waits for the word to run: a guest that nobody runs asks for nothing.
        private func expectPushes(_ stage: FaultStage) async throws {
            let before = try await wait(for: "pages to be missing", seconds: 5) {
                stage.destination.missingPages(of: FaultStage.vm)
            }
            #expect(before > 2000, "too few are missing to see any come")
            try await wait(for: "pages to be pushed", seconds: 2) {
                let now = stage.destination.missingPages(of: FaultStage.vm)
                return now.map { $0 + 1000 < before } ?? true ? true : nil
            }
            let held = try await stage.source.latestJob(of: FaultStage.vm)
            #expect(held.phase == .switching && held.progress.elapsedMs > 0, "\(FaultStage.told(held))")
            #expect(try await stage.destination.machines().allSatisfy { $0.state != .running })
        }

        /// A page is in the file, and counts as missing; or counts no longer, and whoever waits for it has not been woken.
        @Test(.timeLimit(.minutes(5)), arguments: ["settlePushed", "wakePushed"])
        func anAgentIsKilledWithAPageHalfWayIn(point: String) async throws {
            try await FaultStage.with(mode: .postcopy, recordMs: 0) { stage in
                // The first page comes before the guest runs, which it then does with all others missing.
                for time in [1, 400, 2500] {
                    try await fault("kill -9 destination agent", "before \(point), time \(time)") {
                        let job = try await begin(point, time, stage)
                        try await stage.destination.kill()
                        try await stage.restart(stage.destination)
                        return try await settle(job, stage)
                    }
                    try await fault("kill -9 source agent", "before \(point), time \(time)") {
                        let job = try await begin(point, time, stage)
                        try await stage.source.kill()
                        try await stage.restart(stage.source)
                        return try await settle(job, stage)
                    }
                }
                try await fault("kill -9 both agents", "before \(point)") {
                    let job = try await begin(point, 1000, stage)
                    try await stage.source.kill()
                    try await stage.destination.kill()
                    try await stage.restart(stage.destination)
                    try await stage.restart(stage.source)
                    return try await settle(job, stage)
                }
            }
        }

        /// Returns when the destination's push thread stands there and the guest has run for a moment.
        private func begin(_ point: String, _ time: Int, _ stage: FaultStage) async throws -> JobStatus {
            try await stage.rehearse()
            let job = try await stage.begin(heldAt: "destination:\(point)@\(time)", holdMs: 4000)
            let pulling = try await stage.source.job(of: FaultStage.vm, seconds: 20) {
                $0.id == job.id && ($0.phase == .pulling || $0.phase.isFinal)
            }
            #expect(pulling.phase == .pulling, "\(FaultStage.told(pulling))")
            try await ContinuousClock().sleep(for: .milliseconds(300))
            #expect(stage.destination.missingPages(of: FaultStage.vm) ?? 0 > 0, "nothing is missing any more")
            return job
        }

        private func settle(_ job: JobStatus, _ stage: FaultStage) async throws -> JobStatus {
            let ended = try await stage.settle(job, .completed, moved: true, seconds: 60)
            #expect((ended.summary?.pull?.missingPages ?? 0) > 0, "\(FaultStage.told(ended))")
            return ended
        }
    }
}
