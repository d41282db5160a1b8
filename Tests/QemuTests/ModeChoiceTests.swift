import ApusAPI
import ApusLab
import ApusSystem
import Foundation
import Testing

extension RealGuests {
    /// Nobody says how the guest is to go: a plan that was just made does, and its choice is dropped where it cannot be had.
    @Suite(.enabled(if: HostPair.canMakeNamespaces, "needs root")) struct ModeChoiceTests {
        /// Three times what the link carries, all over a region that does not fit the pause.
        private func with(_ body: (FaultStage) async throws -> Void) async throws {
            var workload = FaultStage.workload
            workload.hotMiB = 24
            workload.pagesPerS = 18_000
            workload.checkShare = 10
            try await FaultStage.with(workload: workload) { stage in
                let text = try await stage.source.apus(
                    ["plan", FaultStage.vm, stage.destination.endpoint, "--json"], seconds: 60)
                let plan = try Agent.decode(PlanReport.self, text)
                #expect(plan.options.contains { $0.mode == .hybrid && $0.ending == .follows }, "\(plan)")
                #expect(plan.options.contains { $0.mode == .dsm && $0.ending == .tooBusy }, "\(plan)")
                try await body(stage)
            }
        }

        private func move(_ stage: FaultStage) async throws -> JobStatus {
            let text = try await stage.source.apus(
                ["migrate", FaultStage.vm, stage.destination.endpoint, "--detach", "--json", "--allow", "postcopy"])
            return try Agent.decode(JobStatus.self, text)
        }

        @Test(.timeLimit(.minutes(3))) func aBusyGuestGoesBeforeItsMemory() async throws {
            try await with { stage in
                let job = try await move(stage)
                let ended = try await stage.settle(job, .completed, moved: true, seconds: 60)
                #expect(ended.chosen?.mode == .hybrid && ended.chosen?.basis == .plan, "\(ended)")
                #expect(ended.notes.contains { $0.contains("Mode hybrid was chosen") }, "\(ended.notes)")
                #expect(ended.summary?.port == .direct && ended.summary?.pull != nil, "\(ended)")
            }
        }

        /// Since the plan somebody else has mapped its memory, whose writes nobody would see.
        @Test(.timeLimit(.minutes(3))) func whatIsNotPossibleIsDropped() async throws {
            try await with { stage in
                let pid = try #require(try await stage.source.qemuPID(of: FaultStage.vm))
                let files = try ProcFile.numbers(in: "/proc/\(pid)/fd").map { "/proc/\(pid)/fd/\($0)" }
                let bytes = UInt64(FaultStage.workload.memoryKiB) << 10
                let ram = try #require(files.first { (try? FileIdentity.of(path: $0))?.size == bytes })
                let window = try GuestWindow(try Descriptor.open(ram, .readWrite), fileOffset: 0, byteCount: 4096)
                let job = try await move(stage)
                let begun = try await stage.source.job(of: FaultStage.vm, seconds: 30) {
                    $0.phase.isFinal || $0.progress.round > 0
                }
                withExtendedLifetime(window) {}
                #expect(begun.chosen?.mode == .dsm && begun.chosen?.basis == .firstPass, "\(begun)")
                let notes = begun.notes
                #expect(notes.contains { $0.contains("Mode hybrid is not possible after all") }, "\(notes)")
                #expect(
                    notes.contains { $0.contains("goes by the stream port") && $0.contains("mapped too") }, "\(notes)")
                // It is met as any other guest, and this one is too busy for that port.
                try await stage.source.apus(["job", "abort", begun.id])
                try await stage.settle(job, .aborted)
            }
        }
    }
}
