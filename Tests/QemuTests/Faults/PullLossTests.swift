import ApusAPI
import ApusLab
import Foundation
import Testing

extension RealGuests {
    /// Losses as the guest's memory is handed over, losses for good, and a QEMU that cannot be entered.
    @Suite(.enabled(if: HostPair.canMakeNamespaces, "needs root")) struct PullLossTests {
        /// Touches of missing pages are told already, nothing is dropped yet, the device state is on its way.
        @Test(.timeLimit(.minutes(2))) func theHandOverIsCutOff() async throws {
            try await FaultStage.with(mode: .postcopy, recordMs: 0) { stage in
                let moment = "between watching memory and dropping it"
                func begin() async throws -> JobStatus {
                    // An agent holds once in its life.
                    try await stage.rehearse()
                    return try await stage.begin(heldAt: "destination:emptyMemory", holdMs: 1500)
                }
                try await fault("kill -9 destination agent", moment) {
                    let job = try await begin()
                    try await stage.destination.kill()
                    try await stage.restart(stage.destination)
                    return try await stage.settle(job, .failed)
                }
                try await fault("connections reset", moment) {
                    let job = try await begin()
                    try await stage.pair.resetConnections(of: stage.pair.source)
                    return try await stage.settle(job, .failed)
                }
                try await fault("then a migration", String?.none) {
                    try await stage.rehearse()
                    let job = try await stage.migrate(maxDowntimeMs: FaultStage.converging)
                    return try await stage.settle(job, .completed, moved: true)
                }
            }
        }

        /// The guest waits, and its job tells for what; the operator gives it up.
        @Test(.timeLimit(.minutes(2))) func theSourceIsGoneForGood() async throws {
            try await FaultStage.with(mode: .postcopy, recordMs: 0, sourceLossS: 2) { stage in
                try await fault("source host gone", "while pages follow") {
                    let job = try await stage.beginPull()
                    try await stage.pair.setLink(up: false)
                    let began = ContinuousClock.now
                    let pid = try #require(try await stage.source.qemuPID(of: FaultStage.vm))
                    try await stage.source.kill()
                    kill(pid, SIGKILL)
                    let there = try await stage.destination.job(of: FaultStage.vm, seconds: 30) { now in
                        now.phase.isFinal || now.notes.contains { $0.contains("has not been reached for 2 s") }
                    }
                    // Silent for 5 s, then away for 2 s.
                    #expect(ContinuousClock.now - began < .seconds(12))
                    #expect(
                        there.phase == .pulling && there.progress.memoryRemainingBytes > 0, "\(FaultStage.told(there))")
                    #expect(there.notes.contains { $0.contains("Still missing here") && $0.contains("pages: ") })
                    // It stands where it touches a missing page: not dead, not running.
                    let console = try await Console.connect(path: stage.destination.consolePath(of: FaultStage.vm))
                    #expect(try await hostsRunning([console]) == [])
                    await console.close()
                    #expect(try await stage.destination.machines().first?.state == .running)
                    try await stage.destination.apus(["job", "resolve", there.id, "--revert"])
                    let given = try await stage.destination.end(of: there.id, seconds: 10)
                    #expect(given.phase == .failed && stage.destination.machineFiles() == [])
                    #expect(stage.lab.strangers == [])
                    try await stage.pair.setLink(up: true)
                    return job
                }
            }
        }

        /// Past the commit the VM is what the destination has.
        @Test(.timeLimit(.minutes(2))) func theDestinationsQemuIsKilled() async throws {
            try await FaultStage.with(mode: .postcopy, recordMs: 0) { stage in
                try await fault("kill -9 destination QEMU", "while pages follow") {
                    let job = try await stage.beginPull()
                    kill(try #require(try await stage.destination.qemuPID(of: FaultStage.vm)), SIGKILL)
                    let ended = try await stage.source.end(of: job.id, seconds: 20)
                    #expect(ended.phase == .failed, "\(FaultStage.told(ended))")
                    FaultStage.expectsWords(ended.error)
                    let there = try await stage.destination.job(of: FaultStage.vm, seconds: 10) { $0.phase.isFinal }
                    #expect(there.phase == .failed, "\(FaultStage.told(there))")
                    // Neither copy runs: the stopped one is older than the guest's disks.
                    #expect(try await stage.source.machines().allSatisfy { $0.state != .running })
                    #expect(try await stage.destination.machines().allSatisfy { $0.state != .running })
                    return ended
                }
            }
        }

        /// A filter forbids userfaultfd(2), and the agent, which has one itself, may not lift it: the guest goes by the stream
        /// port, whole, and the job says why.
        @Test(.timeLimit(.minutes(2))) func aFilterKeepsTheAgentOut() async throws {
            try await FaultStage.with(programs: Self.fenced) { stage in
                try await fault("mode postcopy of a fenced QEMU", String?.none) {
                    let answer = try await stage.source.attempt(
                        ["migrate", FaultStage.vm, stage.destination.endpoint, "--json", "--mode", "postcopy"])
                    #expect(answer.exitCode == 1, "\(answer)")
                    let job = try Agent.decode(JobStatus.self, answer.output)
                    FaultStage.expectsWords(job.error, code: "mode-not-possible")
                    #expect(job.error?.message.contains("seccomp filter") == true, "\(FaultStage.told(job))")
                    try await stage.expectOneGuest()
                    return job
                }
                try await fault("any mode of a fenced QEMU", String?.none) {
                    let job = try await stage.migrate(maxDowntimeMs: FaultStage.converging)
                    let ended = try await stage.settle(job, .completed, moved: true)
                    #expect(ended.summary?.port == .stream, "\(FaultStage.told(ended))")
                    #expect(ended.notes.contains { $0.contains("seccomp filter") }, "\(FaultStage.told(ended))")
                    return ended
                }
            }
        }

        private static func fenced(_ lab: Lab) throws -> (apus: String, qemu: String) {
            let runner = try FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")
            let fence = URL(fileURLWithPath: runner).deletingLastPathComponent().appendingPathComponent("fenced-in")
                .path
            func script(_ name: String, _ number: Int, _ program: String) throws -> String {
                let path = lab.path(name)
                try "#!/bin/sh\nexec \(fence) \(number) \(program) \"$@\"\n".write(
                    toFile: path, atomically: true, encoding: .utf8)
                try FileManager.default.setAttributes([.posixPermissions: 0o755], ofItemAtPath: path)
                return path
            }
            let (swapon, userfaultfd) = (167, 323)
            let apus = URL(fileURLWithPath: ApusPeer.findProgram()).path
            return (
                try script("fenced-apus", swapon, apus), try script("fenced-qemu", userfaultfd, QemuProgram.installed)
            )
        }
    }
}
