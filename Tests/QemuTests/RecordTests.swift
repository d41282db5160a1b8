import ApusAPI
import ApusLab
import ApusSystem
import Foundation
import Testing

extension RealGuests {
    /// What a guest uses is recorded before it moves.
    @Suite(.enabled(if: HostPair.canMakeNamespaces && WriteTracker.hostLacks() == nil, "needs root"))
    struct RecordTests {
        @Test(.timeLimit(.minutes(3))) func aGuestDoesNotNotice() async throws {
            try await Lab.with { lab in
                let guest = try await EnteredQemu.start(
                    QemuProgram.newer ?? QemuProgram.installed, sharesMemory: true, in: lab)
                let tracker = try WriteTracker.attach(
                    pid: guest.pid, areas: [guest.memory], journal: lab.path("journal"))
                for _ in 0..<10 {
                    try tracker.forgetUse()
                    try await ContinuousClock().sleep(for: .milliseconds(300))
                    var used: UInt64 = 0
                    try tracker.eachUsed { used += $2 }
                    // It writes and checks, but far from everything.
                    #expect(used > 300 * 4096 && used < guest.memory.byteCount / 2, "\(used >> 20) MiB")
                }
                try tracker.detach()
                #expect(!FileManager.default.fileExists(atPath: lab.path("journal")))
                try await guest.proves()
            }
        }

        /// Nothing is left behind, and no page is lost.
        @Test(.timeLimit(.minutes(3)), arguments: [ApusPeer.Port.direct, .stream])
        func anEndInTheWindowHarmsNothing(port: ApusPeer.Port) async throws {
            let workload = port == .stream ? FaultStage.privateMemory : FaultStage.workload
            try await FaultStage.with(port: port, mode: .postcopy, workload: workload, recordMs: 5000) { stage in
                try await fault("kill -9 source agent", "while use is recorded") {
                    let job = try await stage.beginRecord()
                    try await stage.source.kill()
                    try await stage.restart(stage.source)
                    return try await stage.settle(job, .failed)
                }
                try await fault("abort", "while use is recorded") {
                    let job = try await stage.beginRecord()
                    try await stage.source.apus(["job", "abort", job.id])
                    return try await stage.settle(job, .aborted)
                }
                try await fault("job postcopy", "while use is recorded") {
                    let job = try await stage.beginRecord()
                    try await stage.source.apus(["job", "postcopy", job.id])
                    let ended = try await stage.settle(job, .completed, moved: true)
                    let record = try #require(ended.summary?.pull?.prefetch)
                    #expect(record.recordMs < 5000 && record.recordPages > 100 && record.recordedPages > 0, "\(record)")
                    #expect((record.recordMs > 0) == (port == .direct), "\(record)")
                    return ended
                }
                try await fault("kill -9 source QEMU", "while use is recorded") {
                    let job = try await stage.beginRecord()
                    kill(try #require(try await stage.source.qemuPID(of: FaultStage.vm)), SIGKILL)
                    let ended = try await stage.source.end(of: job.id, seconds: 20)
                    #expect(ended.phase == .failed)
                    FaultStage.expectsWords(ended.error)
                    return ended
                }
            }
        }

        @Test(.timeLimit(.minutes(2))) func aHybridMovesWhenItIsTold() async throws {
            try await FaultStage.with(mode: .hybrid) { stage in
                let job = try await stage.begin(.firstRound)
                try await stage.source.apus(["job", "postcopy", job.id])
                let ended = try await stage.settle(job, .completed, moved: true)
                // Most of its memory had not travelled.
                #expect((ended.summary?.pull?.missingPages ?? 0) > 4000, "\(FaultStage.told(ended))")
                #expect(ended.notes.contains { $0.contains("told to move at once") })
                let over = try await #require(throws: LabError.self) {
                    try await stage.destination.apus(["job", "postcopy", job.id])
                }
                #expect("\(over)".contains("has ended already"), "\(over)")
            }
            try await FaultStage.with(mode: .dsm) { stage in
                let job = try await stage.begin(.firstRound)
                let refusal = try await #require(throws: LabError.self) {
                    try await stage.source.apus(["job", "postcopy", job.id])
                }
                #expect("\(refusal)".contains("--mode hybrid"), "\(refusal)")
                try await stage.source.apus(["job", "abort", job.id])
                try await stage.settle(job, .aborted)
            }
        }
    }
}

extension FaultStage {
    /// Returns while it is recorded what the guest uses.
    func beginRecord() async throws -> JobStatus {
        try await rehearse()
        let job = try await migrate(maxDowntimeMs: Self.converging)
        try await source.job(of: Self.vm, seconds: 30) {
            $0.id == job.id && ($0.phase == .transferring && $0.progress.wireBytes > 1 << 20 || $0.phase.isFinal)
        }
        return job
    }
}
