import ApusAPI
import ApusLab
import Foundation
import Testing

extension RealGuests {
    /// Pages that need not travel: on a disk that both hosts read, or left behind by the guest itself.
    @Suite(.enabled(if: HostPair.canMakeNamespaces, "needs root")) struct ReferenceTests {
        private static let vm = "g"
        private static let cacheMiB = 64
        /// A quarter of the image is zeros.
        private static let cachePages = UInt64(cacheMiB * 256 * 3 / 4)

        /// Of all that QEMU loads, more than there is.
        private static let kernelPages: UInt64 = 6000

        private static var workload: Workload {
            var workload = Workload(name: "cached", pattern: .idle)
            workload.pagesPerS = 0
            workload.regionMiB = 32
            workload.hotMiB = 8
            workload.memoryKiB = 320 * 1024 + 8
            workload.pageCacheMiB = cacheMiB
            return workload
        }

        /// A guest on the first of two agents, with its disk indexed.
        private func with(
            _ workload: Workload = Self.workload, ownImage: Bool = false, storeMiB: Int? = nil,
            _ body: (_ source: Agent, _ destination: Agent, _ image: String) async throws -> Void
        ) async throws {
            try await Lab.with { lab in
                var workload = workload
                let path = lab.path("disk.img")
                if ownImage { workload.pageCacheImage = path }
                let (source, destination) = try await pair(in: lab) {
                    $0.refers = true
                    $0.storeMiB = storeMiB
                }
                try await run(workload, Self.vm, on: source, lab)
                try await source.waitForIndexes()
                try await body(source, destination, path)
            }
        }

        private func move(_ source: Agent, to destination: Agent, _ options: [String]) async throws -> JobStatus {
            try await source.move(Self.vm, to: destination, options)
        }

        private func expectProof(at agent: Agent) async throws { try await agent.expectProof(of: Self.vm) }

        private func pages(_ form: String, _ job: JobStatus) -> UInt64 {
            job.summary?.forms.first { $0.form == form }?.pages ?? 0
        }

        /// There it refers to the disk, back to what it has left too.
        @Test(.timeLimit(.minutes(3)), arguments: ["direct", "stream"]) func thereAndBack(port: String) async throws {
            try await with { source, destination, _ in
                let there = try await move(source, to: destination, ["--port", port, "--verify"])
                #expect(there.phase == .completed, "\(there)")
                #expect(pages("disk", there) > Self.cachePages * 9 / 10, "\(there)")
                #expect(there.summary?.repairedPages == 0 && there.notes == [], "\(there)")
                try await expectProof(at: destination)
                try await source.waitForImage(of: Self.vm)
                try await destination.waitForIndexes()
                let back = try await move(destination, to: source, ["--port", port, "--verify"])
                #expect(back.phase == .completed, "\(back)")
                #expect(pages("snapshot", back) > Self.cachePages, "\(back)")
                #expect(back.summary?.repairedPages == 0, "\(back)")
                let (first, second) = (there.summary?.wireBytes ?? 0, back.summary?.wireBytes ?? .max)
                #expect(second < first / 2, "\(second) bytes back, \(first) there")
                try await expectProof(at: source)
                let left = try await source.apus(["store", "drop", Self.vm, "--wipe", "--json"])
                #expect(try Agent.decode(StoreReport.self, left).images == [])
            }
        }

        /// The file was written over after the source had read it: not a page of it is what the guest has.
        @Test(.timeLimit(.minutes(2))) func anotherImageUnderTheSameName() async throws {
            try await with(ownImage: true) { source, destination, path in
                let file = try #require(FileHandle(forUpdatingAtPath: path))
                let noise = Data((0..<(1 << 20)).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ $0 >> 12) })
                for _ in 0..<Self.cacheMiB { try file.write(contentsOf: noise) }
                try file.close()
                let job = try await move(source, to: destination, ["--port", "direct", "--verify"])
                #expect(job.phase == .completed, "\(job)")
                // Kernel and initrd are as they were.
                #expect(pages("disk", job) < Self.kernelPages, "\(job)")
                // The gate closes long before each page of it was tried.
                let refused = job.notes.compactMap {
                    $0.contains("travelled after all") ? Int($0.prefix { $0 != " " }) : nil
                }
                #expect(refused.count == 1 && refused[0] < Int(Self.cachePages / 2), "\(job)")
                #expect(job.notes.contains { $0.contains("left out for a while") }, "\(job)")
                #expect(job.summary?.repairedPages == 0, "\(job)")
                try await expectProof(at: destination)
            }
        }

        /// What the operator switches off is off; what is foretold knows both. A store that is too small is said to be.
        @Test(.timeLimit(.minutes(2))) func withoutReferences() async throws {
            try await with(storeMiB: 1) { source, destination, _ in
                let plan = try await plan(source, destination)
                // A fifth; 128 runs of pages are chosen at random.
                #expect((0.06...0.4).contains(plan.diskShare) && plan.snapshotShare == 0, "\(plan)")
                let literal = try await self.plan(source, destination, ["--no-references"])
                #expect(literal.diskShare == 0 && literal.options.map(\.port) == plan.options.map(\.port), "\(literal)")
                let job = try await move(source, to: destination, ["--no-references"])
                #expect(job.phase == .completed && pages("disk", job) == 0, "\(job)")
                #expect(job.notes.contains { $0.contains("content.storeMiB") }, "\(job)")
                try await expectProof(at: destination)
            }
        }

        private func plan(_ source: Agent, _ destination: Agent, _ options: [String] = []) async throws -> PlanReport {
            let words = ["plan", Self.vm, destination.endpoint, "--seconds", "0.5", "--json"] + options
            return try Agent.decode(PlanReport.self, try await source.apus(words, seconds: 60))
        }

        /// Half of the disk is in a qcow2 file, the other half in what that is laid over: a block device.
        @Test(.timeLimit(.minutes(2))) func aChainOfImages() async throws {
            try await Lab.with { lab in
                var workload = Self.workload
                workload.pageCacheImage = try await DiskChain.make(mebibytes: Self.cacheMiB, in: lab)
                workload.pageCacheFormat = "qcow2"
                let (source, destination) = try await pair(in: lab) { $0.refers = true }
                try await run(workload, Self.vm, on: source, lab)
                try await source.waitForIndexes()
                let job = try await move(source, to: destination, ["--port", "direct", "--verify"])
                #expect(job.phase == .completed && job.notes == [], "\(job)")
                #expect(pages("disk", job) > Self.cachePages * 9 / 10, "\(job)")
                #expect(job.summary?.repairedPages == 0, "\(job)")
                try await expectProof(at: destination)
            }
        }

        /// A VM from the same template as one that has left finds that one's pages; another tenant's VM does not.
        @Test(.timeLimit(.minutes(3))) func siblings() async throws {
            try await Lab.with { lab in
                let (here, there) = try await pair(in: lab) {
                    $0.refers = true
                    $0.domains = ["stranger": "other"]
                }
                try await run(Self.workload, Self.vm, on: there, lab)
                let first = try await there.move(Self.vm, to: here, [])
                #expect(first.phase == .completed, "\(first)")
                try await there.waitForImage(of: Self.vm)
                for (vm, isSibling) in [("sibling", true), ("stranger", false)] {
                    try await run(Self.workload, vm, on: here, lab)
                    try await here.waitForIndexes()
                    let plan = try Agent.decode(
                        PlanReport.self,
                        try await here.apus(["plan", vm, there.endpoint, "--seconds", "0.5", "--json"], seconds: 60))
                    let job = try await here.move(vm, to: there, ["--verify"])
                    #expect(job.phase == .completed && job.summary?.repairedPages == 0, "\(job)")
                    let snapshot = pages("snapshot", job)
                    #expect(isSibling ? snapshot > Self.cachePages : snapshot == 0, "\(job)")
                    #expect((plan.snapshotShare > 0) == isSibling, "\(plan)")
                    #expect(job.notes.contains { $0.contains("memory image of \(Self.vm),") } == isSibling, "\(job)")
                    try await there.expectProof(of: vm)
                    try await there.apus(["vm", "stop", vm, "--force"])
                }
            }
        }

        private func pair(
            in lab: Lab, _ change: (inout ApusPeer) -> Void
        ) async throws -> (source: Agent, destination: Agent) {
            let pair = try await HostPair.make(in: lab, rate: 1_000_000_000)
            var peer = ApusPeer(program: ApusPeer.findProgram(), qemu: QemuProgram.installed)
            change(&peer)
            return (
                try await Agent.start("a", peer, pair.source, lab, port: 4600),
                try await Agent.start("b", peer, pair.destination, lab, port: 4601)
            )
        }

        private func run(_ workload: Workload, _ vm: String, on agent: Agent, _ lab: Lab) async throws {
            let image = try GuestImage.find()
            let accelerator = await Accelerator.probe(qemu: QemuProgram.installed, image: image)
            let console = try await agent.run(
                workload, as: vm, qemu: QemuProgram.installed, image: image, accelerator: accelerator)
            await console.close()
        }
    }
}
