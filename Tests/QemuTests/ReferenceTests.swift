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
            _ workload: Workload = Self.workload, ownImage: Bool = false,
            _ body: (_ source: Agent, _ destination: Agent, _ image: String) async throws -> Void
        ) async throws {
            try await Lab.with { lab in
                var workload = workload
                let path = lab.path("disk.img")
                if ownImage { workload.pageCacheImage = path }
                let pair = try await HostPair.make(in: lab, rate: 1_000_000_000)
                var peer = ApusPeer(program: ApusPeer.findProgram(), qemu: QemuProgram.installed)
                peer.refers = true
                let source = try await Agent.start("a", peer, pair.source, lab, port: 4600)
                let destination = try await Agent.start("b", peer, pair.destination, lab, port: 4601)
                let image = try GuestImage.find()
                let accelerator = await Accelerator.probe(qemu: peer.qemu, image: image)
                let console = try await source.run(
                    workload, as: Self.vm, qemu: peer.qemu, image: image, accelerator: accelerator)
                lab.later("console") { await console.close() }
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
                #expect(pages("disk", job) == 0, "\(job)")
                #expect(job.notes.contains { $0.contains("travelled after all") }, "\(job)")
                #expect(job.summary?.repairedPages == 0, "\(job)")
                try await expectProof(at: destination)
            }
        }

        /// What the operator switches off is off.
        @Test(.timeLimit(.minutes(2))) func withoutReferences() async throws {
            try await with { source, destination, _ in
                let job = try await move(source, to: destination, ["--no-references"])
                #expect(job.phase == .completed && pages("disk", job) == 0, "\(job)")
                try await expectProof(at: destination)
            }
        }
    }
}
