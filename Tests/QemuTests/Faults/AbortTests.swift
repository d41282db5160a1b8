import ApusAPI
import ApusLab
import Foundation
import Testing

extension RealGuests {
    /// People change their minds.
    @Suite(.enabled(if: HostPair.canMakeNamespaces, "needs root")) struct AbortTests {
        @Test(.timeLimit(.minutes(3))) func theUserAborts() async throws {
            try await FaultStage.with { stage in
                for moment in FaultMoment.chosen {
                    try await fault("abort by user", moment) {
                        let job = try await stage.begin(moment)
                        let answer = try await stage.source.attempt(["job", "abort", job.id, "--json"])
                        #expect(answer.exitCode == 0, "\(answer.errors)")
                        // Past `prepared` the source must hear QEMU out; it has handed the guest over.
                        guard moment == .prepared || moment.isPastCommit else {
                            let ended = try await stage.settle(job, .aborted)
                            FaultStage.expectsWords(ended.error, code: "aborted")
                            return ended
                        }
                        let ended = try await stage.settle(job, .completed, moved: true)
                        if moment == .prepared {
                            #expect(ended.notes.contains { $0.contains("past the point") }, "\(ended.notes)")
                        }
                        return ended
                    }
                }
            }
        }

        /// Ctrl-C on `apus migrate`: it waits for the end, and says it in its exit code.
        @Test(.timeLimit(.minutes(2))) func theCommandIsInterrupted() async throws {
            try await FaultStage.with { stage in
                try await fault("Ctrl-C", FaultMoment.firstRound) {
                    let ended = try await stage.source.attempt(
                        ["migrate", FaultStage.vm, stage.destination.endpoint, "--json", "--max-downtime", "1"],
                        seconds: 40,
                        through: ["timeout", "--foreground", "--preserve-status", "--signal=INT", "3"])
                    #expect(ended.exitCode == 4, "\(ended)")
                    let job = try Agent.decode(JobStatus.self, ended.output)
                    return try await stage.settle(job, .aborted)
                }
            }
        }
    }
}
