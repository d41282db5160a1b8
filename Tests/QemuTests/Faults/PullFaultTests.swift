import ApusAPI
import ApusLab
import Foundation
import Testing

extension RealGuests {
    /// What goes wrong while a guest runs at its destination and most of its memory is still at its source.
    @Suite(.enabled(if: HostPair.canMakeNamespaces, "needs root")) struct PullFaultTests {
        @Test(.timeLimit(.minutes(3))) func nothingIsLostWhilePagesFollow() async throws {
            try await FaultStage.with(mode: .postcopy, recordMs: 0) { stage in
                try await pull("kill -9 destination agent", stage) {
                    try await stage.destination.kill()
                    // Its guest stands still where it touches a missing page, and goes on.
                    try await ContinuousClock().sleep(for: .seconds(1))
                    try await stage.restart(stage.destination)
                }
                try await pull("kill -9 source agent", stage) {
                    try await stage.source.kill()
                    try await ContinuousClock().sleep(for: .seconds(1))
                    try await stage.restart(stage.source)
                }
                try await pull("kill -9 both agents", stage) {
                    try await stage.source.kill()
                    try await stage.destination.kill()
                    try await stage.restart(stage.destination)
                    try await stage.restart(stage.source)
                }
                // The agent holds the guest's memory too.
                try await pull("kill -9 source QEMU", stage) {
                    kill(try #require(try await stage.source.qemuPID(of: FaultStage.vm)), SIGKILL)
                }
            }
        }

        @Test(.timeLimit(.minutes(3))) func theNetworkFailsWhilePagesFollow() async throws {
            try await FaultStage.with(mode: .postcopy, recordMs: 0) { stage in
                try await pull("link down for 7 s, connections reset as they are restored", stage) {
                    let former = try await stage.pair.connections
                    try await stage.pair.setLink(up: false)
                    try await ContinuousClock().sleep(for: .seconds(7))
                    try await stage.pair.setLink(up: true)
                    try await wait(for: "a new connection", seconds: 20, every: .milliseconds(5)) {
                        try await stage.pair.connections.isSubset(of: former) ? nil : true
                    }
                    try await stage.pair.resetConnections(of: stage.pair.source)
                }
                // Its packets are lost, and nobody says so.
                try await pull("one way blocked for 7 s with 98 % there", stage) {
                    let isPulling = try await stage.destination.waitForPages(
                        of: FaultStage.vm, missingShare: 0.02, seconds: 30)
                    #expect(isPulling, "all pages were there before the fault")
                    try await stage.pair.setPath(from: stage.pair.source, to: stage.pair.destination, open: false)
                    try await ContinuousClock().sleep(for: .seconds(7))
                    try await stage.pair.setPath(from: stage.pair.source, to: stage.pair.destination, open: true)
                }
                try await pull("connections reset, twice", stage) {
                    try await stage.pair.resetConnections(of: stage.pair.source)
                    try await ContinuousClock().sleep(for: .seconds(2))
                    try await stage.pair.resetConnections(of: stage.pair.source)
                }
            }
        }

        /// Until the commit point missing pages change nothing: the guest stays.
        @Test(.timeLimit(.minutes(3))) func beforeTheCommitTheGuestStays() async throws {
            try await FaultStage.with(mode: .postcopy, recordMs: 0) { stage in
                try await fault("abort", FaultMoment.stopped) {
                    let job = try await stage.begin(.stopped)
                    try await stage.source.apus(["job", "abort", job.id])
                    return try await stage.settle(job, .aborted)
                }
                for moment in [FaultMoment.setup, .stopped] {
                    try await fault("kill -9 destination agent", moment) {
                        let job = try await stage.begin(moment)
                        try await stage.destination.kill()
                        try await stage.restart(stage.destination)
                        return try await stage.settle(job, .failed)
                    }
                }
                for moment in [FaultMoment.setup, .stopped] {
                    try await fault("kill -9 source agent", moment) {
                        let job = try await stage.begin(moment)
                        try await stage.source.kill()
                        try await stage.restart(stage.source)
                        return try await stage.settle(job, .failed)
                    }
                }
                for moment in [FaultMoment.prepared, .committed, .starting] {
                    try await fault("kill -9 destination agent", moment) {
                        let job = try await stage.begin(moment)
                        try await stage.destination.kill()
                        try await stage.restart(stage.destination)
                        return try await stage.settle(job, .completed, moved: true, seconds: 40)
                    }
                }
            }
        }

        /// Both copies of the missing pages are gone: the job says so, and the guest is left as it is.
        @Test(.timeLimit(.minutes(2))) func theMissingPagesAreLost() async throws {
            try await FaultStage.with(mode: .postcopy, recordMs: 0) { stage in
                try await fault("kill -9 source agent and QEMU", "while pages follow") {
                    let job = try await stage.beginPull()
                    let pid = try #require(try await stage.source.qemuPID(of: FaultStage.vm))
                    try await stage.source.kill()
                    kill(pid, SIGKILL)
                    try await stage.restart(stage.source)
                    return try await expectLostPages(job, stage)
                }
            }
        }

        /// Memory that is in no file at either end: agents read it from the process and drop it there, and their successors
        /// find it again.
        @Test(.timeLimit(.minutes(3))) func privatePagesFollowAllTheSame() async throws {
            // No room for a file.
            try await FaultStage.with(port: .stream, mode: .postcopy, ramDirectory: "/proc", recordMs: 0) { stage in
                try await pull("kill -9 source agent, private memory", stage) {
                    try await stage.source.kill()
                    try await ContinuousClock().sleep(for: .seconds(1))
                    try await stage.restart(stage.source)
                }
                try await pull("kill -9 destination agent, private memory", stage) {
                    try await stage.destination.kill()
                    try await ContinuousClock().sleep(for: .seconds(1))
                    try await stage.restart(stage.destination)
                }
                try await pull("connections reset, private memory", stage) {
                    try await stage.pair.resetConnections(of: stage.pair.source)
                }
            }
        }

        /// With its QEMU private memory is gone, whoever still runs.
        @Test(.timeLimit(.minutes(3))) func privatePagesEndWithTheirQemu() async throws {
            try await FaultStage.with(
                port: .stream, mode: .postcopy, workload: FaultStage.privateMemory, recordMs: 0
            ) { stage in
                // The destination has loaded everything but these pages: it may not have the VM.
                for moment in [FaultMoment.stopped, .prepared] {
                    try await fault("kill -9 source QEMU, private memory", moment) {
                        let job = try await stage.begin(moment)
                        kill(try #require(try await stage.source.qemuPID(of: FaultStage.vm)), SIGKILL)
                        let ended = try await stage.source.end(of: job.id, seconds: 30)
                        #expect(ended.phase == .failed, "\(FaultStage.told(ended))")
                        FaultStage.expectsWords(ended.error, code: "qemu-died")
                        try await stage.expectNoGuest()
                        try await stage.boot()
                        return ended
                    }
                }
                try await fault("kill -9 source agent", FaultMoment.stopped) {
                    let job = try await stage.begin(.stopped)
                    try await stage.source.kill()
                    try await stage.restart(stage.source)
                    return try await stage.settle(job, .failed)
                }
                try await fault("kill -9 source QEMU, private memory", "while pages follow") {
                    let job = try await stage.beginPull()
                    kill(try #require(try await stage.source.qemuPID(of: FaultStage.vm)), SIGKILL)
                    return try await expectLostPages(job, stage)
                }
            }
        }

        /// The source's job is lost, the destination's says so and waits for a person, who gives the VM up.
        private func expectLostPages(_ job: JobStatus, _ stage: FaultStage) async throws -> JobStatus {
            let ended = try await stage.source.end(of: job.id, seconds: 20)
            #expect(ended.phase == .failed)
            FaultStage.expectsWords(ended.error, code: "pages-lost")
            let there = try await stage.destination.job(of: FaultStage.vm, seconds: 20) { now in
                let isTold = now.notes.contains { $0.contains("pages that were not sent yet are gone") }
                return now.phase.isFinal || (isTold && now.progress.memoryRemainingBytes > 0)
            }
            #expect(there.phase == .pulling, "\(FaultStage.told(there))")
            try await stage.destination.apus(["job", "resolve", there.id, "--revert"])
            let given = try await stage.destination.end(of: there.id, seconds: 10)
            #expect(given.phase == .failed)
            #expect(stage.destination.machineFiles() == [] && stage.lab.strangers == [])
            return ended
        }

        private func pull(_ what: String, _ stage: FaultStage, _ disturb: () async throws -> Void) async throws {
            try await fault(what, "while pages follow") {
                let job = try await stage.beginPull()
                try await disturb()
                let ended = try await stage.settle(job, .completed, moved: true, seconds: 60)
                #expect((ended.summary?.pull?.missingPages ?? 0) > 0, "\(FaultStage.told(ended))")
                return ended
            }
        }
    }
}

extension FaultStage {
    /// Returns when the guest runs at the destination, and much of its memory is missing there.
    func beginPull() async throws -> JobStatus {
        try await rehearse()
        let job = try await migrate(maxDowntimeMs: Self.converging)
        return try await source.job(of: Self.vm, seconds: 30) {
            $0.id == job.id && ($0.phase == .pulling || $0.phase.isFinal)
        }
    }
}
