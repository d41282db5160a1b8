import ApusAPI
import ApusLab
import Foundation
import Testing

extension RealGuests {
    /// `kill -9`, at each moment of a migration.
    @Suite(.enabled(if: HostPair.canMakeNamespaces, "needs root")) struct KillTests {
        @Test(.timeLimit(.minutes(3)), arguments: [ApusPeer.Port.direct, .stream])
        func theSourceAgentDies(port: ApusPeer.Port) async throws {
            try await FaultStage.with(port: port) { stage in
                for moment in FaultMoment.chosen {
                    try await fault("\(port.rawValue) port: kill -9 source agent", moment) {
                        let job = try await stage.begin(moment)
                        try await stage.source.kill()
                        try await stage.restart(stage.source)
                        let moved = moment.isPastCommit
                        let ended = try await stage.settle(job, moved ? .completed : .failed, moved: moved)
                        if !moved { FaultStage.expectsWords(ended.error, code: "agent-restarted") }
                        return ended
                    }
                }
            }
        }

        @Test(.timeLimit(.minutes(3))) func theDestinationAgentDies() async throws {
            try await FaultStage.with { stage in
                for moment in FaultMoment.chosen {
                    try await fault("kill -9 destination agent", moment) {
                        let job = try await stage.begin(moment)
                        try await stage.destination.kill()
                        try await stage.restart(stage.destination)
                        // Prepared and in doubt, it asks, and gets the VM.
                        let moved = moment.isPastCommit || moment == .prepared
                        return try await stage.settle(job, moved ? .completed : .failed, moved: moved)
                    }
                }
            }
        }

        /// The guest dies with its QEMU, unless the destination already holds it.
        @Test(.timeLimit(.minutes(3)), arguments: [ApusPeer.Port.direct, .stream])
        func theSourceQemuDies(port: ApusPeer.Port) async throws {
            try await FaultStage.with(port: port) { stage in
                for moment in FaultMoment.chosen {
                    try await fault("\(port.rawValue) port: kill -9 source QEMU", moment) {
                        let job = try await stage.begin(moment)
                        let pid = try #require(try await stage.source.qemuPID(of: FaultStage.vm))
                        kill(pid, SIGKILL)
                        if moment == .stopped || moment == .prepared || moment.isPastCommit {
                            return try await stage.settle(job, .completed, moved: true)
                        }
                        let ended = try await stage.source.end(of: job.id, seconds: 30)
                        #expect(ended.phase == .failed, "\(FaultStage.told(ended))")
                        FaultStage.expectsWords(ended.error, code: "qemu-died")
                        try await stage.expectNoGuest()
                        try await stage.boot()
                        return ended
                    }
                }
            }
        }

        @Test(.timeLimit(.minutes(3))) func theDestinationQemuDies() async throws {
            try await FaultStage.with { stage in
                // While it loads the last of its stream its word can cross the source's; the simulation has that.
                for moment in FaultMoment.chosen where moment != .stopped {
                    try await fault("kill -9 destination QEMU", moment) {
                        let job = try await stage.begin(moment)
                        let pid = try #require(try await stage.destination.qemuPID(of: FaultStage.vm))
                        kill(pid, SIGKILL)
                        guard moment.isPastCommit else { return try await stage.settle(job, .failed) }
                        // The only newest copy is gone; the stopped one at the source is kept for people to decide.
                        let ended = try await stage.source.end(of: job.id, seconds: 30)
                        #expect(ended.phase == .failed, "\(FaultStage.told(ended))")
                        FaultStage.expectsWords(ended.error)
                        let left = try #require(try await stage.source.machines().first)
                        #expect(left.state == .paused && left.job == nil, "\(left)")
                        #expect(left.note?.isEmpty == false)
                        try await stage.source.apus(["vm", "stop", "--force", FaultStage.vm])
                        // Had it begun to run there, the destination keeps a record of what it lost.
                        for machine in try await stage.destination.machines() {
                            #expect(machine.state == .stopped && machine.job == nil, "\(machine)")
                            try await stage.destination.apus(["vm", "stop", machine.name])
                        }
                        #expect(stage.destination.machineFiles() == [])
                        #expect(stage.lab.strangers == [])
                        try await stage.boot()
                        return ended
                    }
                }
            }
        }
    }
}

extension FaultStage {
    /// Its QEMU was killed: both hosts say so, and keep nothing but the source's record of it.
    func expectNoGuest() async throws {
        let machine = try #require(try await source.machines().first { $0.name == Self.vm })
        #expect(machine.state == .stopped && machine.job == nil, "\(machine)")
        // How it ended only its parent is told, which an agent that was restarted is not.
        #expect(machine.note?.contains("QEMU") == true, "\(machine.note ?? "no note")")
        try await wait(for: "the destination to have nothing", seconds: 15, every: .milliseconds(50)) {
            try await destination.machines().isEmpty && destination.machineFiles().isEmpty ? true : nil
        }
        #expect(lab.strangers == [])
    }
}
