import ApusAPI
import ApusLab
import Foundation
import Testing

extension RealGuests {
    /// Agents come and go; their VMs stay.
    @Suite(.enabled(if: HostPair.canMakeNamespaces, "needs root")) struct RestartTests {
        @Test(.timeLimit(.minutes(2))) func anAgentFindsItsVMsAgain() async throws {
            try await FaultStage.with { stage in
                let pid = try await stage.source.qemuPID(of: FaultStage.vm)
                for isKill in [false, true] {
                    try await fault(isKill ? "kill -9 of an idle agent" : "SIGTERM to an idle agent", String?.none) {
                        if isKill {
                            try await stage.source.kill()
                        } else {
                            await stage.source.process.stop(graceSeconds: 10)
                        }
                        try await stage.restart(stage.source)
                        #expect(try await stage.source.qemuPID(of: FaultStage.vm) == pid)
                        try await stage.expectOneGuest()
                        return nil
                    }
                }
                try await fault("kill -9 before the job's first record", String?.none) {
                    let job = try await stage.begin(heldAt: "source:record-started", holdMs: 1500)
                    try await stage.source.kill()
                    try await stage.restart(stage.source)
                    let ended = try await stage.settle(job, .failed)
                    FaultStage.expectsWords(ended.error, code: "agent-restarted")
                    return ended
                }
                try await fault("SIGTERM in round 1: the job is aborted first", String?.none) {
                    let job = try await stage.begin(.firstRound)
                    let began = ContinuousClock.now
                    await stage.source.process.stop(graceSeconds: 10)
                    #expect(ContinuousClock.now - began < .seconds(8))
                    try await stage.restart(stage.source)
                    return try await stage.settle(job, .aborted)
                }
                try await fault("SIGTERM to the destination in round 1", String?.none) {
                    let job = try await stage.begin(.firstRound)
                    await stage.destination.process.stop(graceSeconds: 10)
                    let ended = try await stage.source.end(of: job.id, seconds: 20)
                    try await stage.restart(stage.destination)
                    return try await stage.settle(ended, .failed)
                }
                // Nothing of all that hinders the next one.
                try await fault("then a migration", String?.none) {
                    try await stage.rehearse()
                    let job = try await stage.migrate(maxDowntimeMs: FaultStage.converging)
                    return try await stage.settle(job, .completed, moved: true)
                }
            }
        }

        @Test(.timeLimit(.minutes(2))) func bothAgentsDie() async throws {
            try await FaultStage.with { stage in
                for moment in [FaultMoment.firstRound, .prepared, .committed] {
                    try await fault("kill -9 both agents", moment) {
                        let job = try await stage.begin(moment)
                        try await stage.source.kill()
                        try await stage.destination.kill()
                        try await stage.restart(stage.destination)
                        try await ContinuousClock().sleep(for: .seconds(1))
                        try await stage.restart(stage.source)
                        let moved = moment.isPastCommit
                        return try await stage.settle(job, moved ? .completed : .failed, moved: moved)
                    }
                }
            }
        }

        /// Nobody is left who saw what became of the guest.
        @Test(.timeLimit(.minutes(2))) func theSourceAgentAndItsQemuDie() async throws {
            try await FaultStage.with { stage in
                func killBoth() async throws {
                    let pid = try #require(try await stage.source.qemuPID(of: FaultStage.vm))
                    try await stage.source.kill()
                    kill(pid, SIGKILL)
                    try await stage.restart(stage.source)
                }
                try await fault("kill -9 source agent and QEMU", FaultMoment.firstRound) {
                    let job = try await stage.begin(.firstRound)
                    try await killBoth()
                    let ended = try await stage.source.end(of: job.id, seconds: 20)
                    FaultStage.expectsWords(ended.error, code: "qemu-died")
                    try await wait(for: "the destination to have nothing", seconds: 15) {
                        try await stage.destination.machines().isEmpty && stage.destination.machineFiles().isEmpty
                            ? true : nil
                    }
                    #expect(stage.lab.strangers == [])
                    try await stage.boot()
                    return ended
                }
                try await fault("kill -9 source agent and QEMU", FaultMoment.committed) {
                    let job = try await stage.begin(.committed)
                    try await killBoth()
                    return try await stage.settle(job, .completed, moved: true)
                }
                // Whether the guest ran on before it died only its operator can know: the destination's copy waits for a word.
                try await fault("kill -9 source agent and QEMU, resolved by its operator", FaultMoment.prepared) {
                    let job = try await stage.begin(.prepared)
                    try await killBoth()
                    let doubt = try await wait(for: "the job to be in doubt", seconds: 20, every: .milliseconds(100)) {
                        let now = try await stage.source.job(job.id)
                        return now.phase == .inDoubt && !now.notes.isEmpty ? now : nil
                    }
                    #expect(doubt.notes.contains { $0.contains("no agent watched") }, "\(doubt.notes)")
                    #expect(try await stage.destination.machines().first?.state == .inDoubt)
                    try await stage.source.apus(["job", "resolve", job.id, "--commit"])
                    return try await stage.settle(job, .completed, moved: true)
                }
            }
        }
    }
}
