import ApusAPI
import ApusLab
import ApusSystem
import Foundation
import Testing

extension RealGuests {
    /// The guest moves first, its memory follows.
    @Suite(.enabled(if: HostPair.canMakeNamespaces, "needs root")) struct PostcopyTests {
        private static let vm = "g"

        private func with(
            _ program: String, rate: UInt64, _ workload: Workload = FaultStage.workload, adopts: Bool = false,
            ramDirectory: String? = nil, recordMs: Double? = nil,
            _ body: (_ source: Agent, _ destination: Agent) async throws -> Void
        ) async throws {
            try await Lab.with { lab in
                let pair = try await HostPair.make(in: lab, rate: rate)
                var peer = ApusPeer(program: ApusPeer.findProgram(), qemu: program)
                peer.ramDirectory = ramDirectory
                peer.recordMs = recordMs
                let source = try await Agent.start("a", peer, pair.source, lab, port: 4600)
                let destination = try await Agent.start("b", peer, pair.destination, lab, port: 4601)
                let image = try GuestImage.find()
                let accelerator = await Accelerator.probe(qemu: program, image: image)
                let console =
                    adopts
                    ? try await source.adopt(
                        workload, as: Self.vm, qemu: program, image: image, accelerator: accelerator, in: lab)
                    : try await source.run(
                        workload, as: Self.vm, qemu: program, image: image, accelerator: accelerator)
                lab.later("console") { await console.close() }
                try await console.verdicts(1, seconds: 90)
                try await body(source, destination)
            }
        }

        private func move(_ source: Agent, to destination: Agent, _ options: [String]) async throws -> JobStatus {
            let text = try await source.apus(
                ["migrate", Self.vm, destination.endpoint, "--json"] + options, seconds: 90)
            let last = try #require(text.split(separator: "\n").last.map(String.init))
            return try (try? Agent.decode(JobStatus.self, last)) ?? Agent.decode(JobStatus.self, text)
        }

        private func expectProof(at agent: Agent) async throws {
            let console = try await Console.connect(path: agent.consolePath(of: Self.vm))
            try await console.verdicts(2, seconds: 60)
            await console.close()
        }

        private func userfaultfds(in agent: Agent) async throws -> Int {
            let pid = try #require(try await agent.qemuPID(of: Self.vm))
            return try FileManager.default.contentsOfDirectory(atPath: "/proc/\(pid)/fd").count {
                ProcFile.link("/proc/\(pid)/fd/\($0)")?.contains("userfaultfd") == true
            }
        }

        @Test(
            .timeLimit(.minutes(4)),
            arguments: [QemuProgram.installed, QemuProgram.newer].compactMap(\.self), ["postcopy", "hybrid"])
        func aBusyGuestIsFollowedByItsMemory(program: String, mode: String) async throws {
            try await with(program, rate: 1_000_000_000) { source, destination in
                let job = try await move(source, to: destination, ["--mode", mode])
                #expect(job.phase == .completed && job.summary?.port == .direct, "\(job)")
                // QEMU silences the guest for some milliseconds before it stops it: the last round may have got all.
                guard let pull = job.summary?.pull, mode == "postcopy" || pull.missingPages > 0 else {
                    #expect(mode == "hybrid", "\(job)")
                    return try await expectProof(at: destination)
                }
                print("\(mode): \(job.summary?.downtimeMs ?? -1) ms down, \(pull)")
                #expect(mode == "postcopy" ? pull.missingPages > 1000 : pull.missingPages < 10_000)
                #expect(pull.faultedPages + pull.pushedPages == pull.missingPages)
                // What was pushed while the devices loaded may have been all that the guest touched.
                #expect((pull.faults > 0) == (pull.stallMs > 0))
                let prefetch = try #require(pull.prefetch)
                #expect(prefetch.order == "trend" && (prefetch.recordMs > 0) == (mode == "postcopy"), "\(prefetch)")
                // A hybrid has what it wrote last for a record, which is all that it lacks.
                #expect(prefetch.recordPages > (mode == "postcopy" ? 500 : 0), "\(prefetch)")
                #expect(mode == "postcopy" || prefetch.restPages <= pull.missingPages / 10, "\(prefetch)")
                // Without faults there is no histogram.
                #expect(pull.faultHistogram?.reduce(0, +) ?? 0 == pull.faults)
                let (used, foreseen) = (try #require(pull.usedPages), try #require(pull.foreseenPages))
                let rightly = try #require(pull.foreseenUsedPages)
                #expect(
                    used <= pull.pushedPages && foreseen <= pull.pushedPages
                        && rightly <= min(foreseen, pull.pushedPages))
                // A guest that rewrites and checks its memory uses some of what was recorded before it asks for it.
                #expect(mode == "hybrid" || (used > 0 && rightly > 0), "\(pull)")
                try await expectProof(at: destination)
                #expect(try await userfaultfds(in: destination) == 0)
                #expect(!destination.machineFiles().contains { $0.contains("pull.") || $0.contains("journal") })
                let back = try await move(destination, to: source, [])
                #expect(back.phase == .completed && back.summary?.port == .direct, "\(back)")
                try await expectProof(at: source)
            }
        }

        /// Private at both ends: what is missing is dropped within the destination's process.
        @Test(
            .timeLimit(.minutes(4)),
            arguments: zip([QemuProgram.installed, QemuProgram.newer].compactMap(\.self), ["hybrid", "postcopy"]))
        func memoryThatIsPrivateAtBothEndsFollows(program: String, mode: String) async throws {
            // No room for a file.
            try await with(program, rate: 300_000_000, ramDirectory: "/proc", recordMs: 0) { source, destination in
                let job = try await move(source, to: destination, ["--mode", mode])
                #expect(job.phase == .completed && job.summary?.port == .stream, "\(job)")
                let pull = try #require(job.summary?.pull)
                print("private at both ends, \(mode): \(job.summary?.downtimeMs ?? -1) ms down, \(pull)")
                #expect(job.summary?.installed["pc.ram"] == "process")
                #expect(pull.coverage == nil && pull.accuracy == nil, "it cannot be told")
                #expect(mode == "postcopy" ? pull.missingPages > 10_000 : pull.missingPages > 0)
                #expect(pull.faultedPages + pull.pushedPages == pull.missingPages)
                try await expectProof(at: destination)
                #expect(try await userfaultfds(in: destination) == 0)
            }
        }

        /// Private RAM, by `-m` of a QEMU that was adopted or by a backend of the command, is read from the process of the
        /// stopped QEMU, which has migrated as it always does.
        @Test(
            .timeLimit(.minutes(4)),
            arguments: [QemuProgram.installed, QemuProgram.newer].compactMap(\.self), ["postcopy", "hybrid"])
        func aGuestWithPrivateMemoryIsFollowedByIt(program: String, mode: String) async throws {
            let adopts = mode == "hybrid"
            var workload = FaultStage.workload
            workload.ram = adopts ? .plain : .anonymous
            try await with(
                program, rate: 1_000_000_000, workload, adopts: adopts, recordMs: 0
            ) { source, destination in
                let job = try await move(source, to: destination, ["--mode", mode])
                #expect(job.phase == .completed && job.summary?.port == .stream, "\(job)")
                let pull = try #require(job.summary?.pull)
                print("private, \(mode): \(job.summary?.downtimeMs ?? -1) ms down, \(pull)")
                #expect(mode == "postcopy" ? pull.missingPages > 10_000 : pull.missingPages < 10_000)
                #expect(pull.faultedPages + pull.pushedPages == pull.missingPages)
                #expect(mode == "hybrid" || (pull.faults > 0 && pull.stallMs > 0))
                // What QEMU sent to be dropped did not travel.
                let wireBytes = job.summary?.wireBytes ?? 0
                #expect(mode == "hybrid" || wireBytes < pull.missingPages * 4096 * 11 / 10, "\(wireBytes) bytes")
                try await expectProof(at: destination)
                #expect(try await userfaultfds(in: destination) == 0)
                #expect(!destination.machineFiles().contains { $0.contains("pull.") || $0.contains("journal") })
            }
        }

        /// By the stream port too memory travels before the guest does, and what the guest wrote last comes first.
        @Test(.timeLimit(.minutes(4)), arguments: [QemuProgram.installed, QemuProgram.newer].compactMap(\.self))
        func privateMemoryTravelsBeforeItsGuest(program: String) async throws {
            // So much travels in the time for a record, and so much does not.
            for (rate, recordMs, isAll) in [(1_000_000_000 as UInt64, 10_000.0, true), (200_000_000, 1_000.0, false)] {
                try await with(program, rate: rate, FaultStage.privateMemory, recordMs: recordMs) {
                    source, destination in
                    let job = try await move(source, to: destination, ["--mode", "postcopy"])
                    #expect(job.phase == .completed && job.summary?.port == .stream, "\(job)")
                    let pull = try #require(job.summary?.pull)
                    let prefetch = try #require(pull.prefetch)
                    print("private, \(rate) b/s: \(job.summary?.downtimeMs ?? -1) ms down, \(pull)")
                    #expect(isAll ? pull.missingPages < 10_000 : pull.missingPages > 10_000)
                    #expect(pull.faultedPages + pull.pushedPages == pull.missingPages)
                    #expect(prefetch.recordPages > 0 && prefetch.recordPages < 10_000, "\(prefetch)")
                    // Nothing but what was written is missing, so all of it is recorded.
                    #expect(!isAll || prefetch.restPages <= pull.missingPages / 10, "\(prefetch)")
                    try await expectProof(at: destination)
                    #expect(try await userfaultfds(in: destination) == 0)
                }
            }
        }
    }
}
