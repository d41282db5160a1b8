import ApusAPI
import ApusLab
import Foundation
import Testing

extension RealGuests {
    /// Pages that need not travel: on a disk that both hosts read, or left behind by the guest itself.
    @Suite(.enabled(if: HostPair.canMakeNamespaces, "needs root")) struct ReferenceTests {
        private static let vm = ReferenceStage.vm
        private static let cachePages = ReferenceStage.cachePages

        /// There it refers to the disk, back to what it has left too.
        @Test(.timeLimit(.minutes(3)), arguments: ["direct", "stream"]) func thereAndBack(port: String) async throws {
            try await Lab.with { lab in
                let stage = try await ReferenceStage.start(in: lab)
                let (source, destination) = (stage.source, stage.destination)
                let there = try await stage.move(["--port", port, "--verify"])
                #expect(there.phase == .completed, "\(there)")
                #expect(there.pages("disk") > Self.cachePages * 9 / 10, "\(there)")
                #expect(there.summary?.repairedPages == 0 && there.notes == [], "\(there)")
                try await destination.expectProof(of: Self.vm)
                try await source.waitForImage(of: Self.vm)
                try await destination.waitForIndexes()
                let back = try await destination.move(Self.vm, to: source, ["--port", port, "--verify"])
                #expect(back.phase == .completed, "\(back)")
                #expect(back.pages("snapshot") > Self.cachePages, "\(back)")
                #expect(back.summary?.repairedPages == 0, "\(back)")
                let (first, second) = (there.summary?.wireBytes ?? 0, back.summary?.wireBytes ?? .max)
                #expect(second < first / 2, "\(second) bytes back, \(first) there")
                try await source.expectProof(of: Self.vm)
                let left = try await source.apus(["store", "drop", Self.vm, "--wipe", "--json"])
                #expect(try Agent.decode(StoreReport.self, left).images == [])
            }
        }

        /// What the operator switches off is off; what is foretold knows both. A store that is too small is said to be.
        @Test(.timeLimit(.minutes(2))) func withoutReferences() async throws {
            try await Lab.with { lab in
                let stage = try await ReferenceStage.start(in: lab) { $0.storeMiB = 1 }
                let (source, destination) = (stage.source, stage.destination)
                let plan = try await plan(source, destination)
                // A fifth; 128 runs of pages are chosen at random.
                #expect((0.06...0.4).contains(plan.diskShare) && plan.snapshotShare == 0, "\(plan)")
                let literal = try await self.plan(source, destination, ["--no-references"])
                #expect(literal.diskShare == 0 && literal.options.map(\.port) == plan.options.map(\.port), "\(literal)")
                let job = try await stage.move(["--no-references"])
                #expect(job.phase == .completed && job.pages("disk") == 0, "\(job)")
                #expect(job.notes.contains { $0.contains("content.storeMiB") }, "\(job)")
                try await destination.expectProof(of: Self.vm)
            }
        }

        private func plan(_ source: Agent, _ destination: Agent, _ options: [String] = []) async throws -> PlanReport {
            let words = ["plan", Self.vm, destination.endpoint, "--seconds", "0.5", "--json"] + options
            return try Agent.decode(PlanReport.self, try await source.apus(words, seconds: 60))
        }

        /// Half of the disk is in a qcow2 file, the other half in what that is laid over: a block device.
        @Test(.timeLimit(.minutes(2))) func aChainOfImages() async throws {
            try await Lab.with { lab in
                var workload = ReferenceStage.workload
                workload.pageCacheImage = try await DiskChain.make(mebibytes: ReferenceStage.cacheMiB, in: lab)
                workload.pageCacheFormat = "qcow2"
                let stage = try await ReferenceStage.start(workload, in: lab)
                let job = try await stage.move(["--port", "direct", "--verify"])
                #expect(job.phase == .completed && job.notes == [], "\(job)")
                #expect(job.pages("disk") > Self.cachePages * 9 / 10, "\(job)")
                #expect(job.summary?.repairedPages == 0, "\(job)")
                try await stage.destination.expectProof(of: Self.vm)
            }
        }

        /// A VM from the same template as one that has left finds that one's pages; another tenant's VM does not.
        @Test(.timeLimit(.minutes(3))) func siblings() async throws {
            try await Lab.with { lab in
                let stage = try await ReferenceStage.agents(in: lab) { $0.domains = ["stranger": "other"] }
                let (here, there) = (stage.source, stage.destination)
                try await ReferenceStage.run(ReferenceStage.workload, Self.vm, on: there)
                let first = try await there.move(Self.vm, to: here, [])
                #expect(first.phase == .completed, "\(first)")
                try await there.waitForImage(of: Self.vm)
                for (vm, isSibling) in [("sibling", true), ("stranger", false)] {
                    try await ReferenceStage.run(ReferenceStage.workload, vm, on: here)
                    try await here.waitForIndexes()
                    let plan = try Agent.decode(
                        PlanReport.self,
                        try await here.apus(["plan", vm, there.endpoint, "--seconds", "0.5", "--json"], seconds: 60))
                    let job = try await here.move(vm, to: there, ["--verify"])
                    #expect(job.phase == .completed && job.summary?.repairedPages == 0, "\(job)")
                    let snapshot = job.pages("snapshot")
                    #expect(isSibling ? snapshot > Self.cachePages : snapshot == 0, "\(job)")
                    #expect((plan.snapshotShare > 0) == isSibling, "\(plan)")
                    #expect(job.notes.contains { $0.contains("memory image of \(Self.vm),") } == isSibling, "\(job)")
                    try await there.expectProof(of: vm)
                    try await there.apus(["vm", "stop", vm, "--force"])
                }
            }
        }
    }
}
