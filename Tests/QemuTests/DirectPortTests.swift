import ApusAPI
import ApusLab
import ApusSystem
import Foundation
import Testing

extension RealGuests {
    /// The port that reads guest RAM itself: whole migrations, and that nothing of it stays.
    @Suite(.enabled(if: HostPair.canMakeNamespaces, "needs root")) struct DirectPortTests {
        private static let vm = "g"

        /// A guest on the first of two agents, under `program`.
        private func with(
            _ program: String, _ workload: Workload = FaultStage.workload, rate: UInt64? = 1_000_000_000,
            _ peer: ApusPeer? = nil, slowDisk: Bool = false,
            _ body: (_ source: Agent, _ destination: Agent, _ console: Console) async throws -> Void
        ) async throws {
            try await Lab.with { lab in
                var workload = workload
                if slowDisk { workload.directDisk = try await DirectDisk.slow(in: lab) }
                let pair = try await HostPair.make(in: lab, rate: rate)
                let peer = peer ?? ApusPeer(program: ApusPeer.findProgram(), qemu: program)
                let source = try await Agent.start("a", peer, pair.source, lab, port: 4600)
                let destination = try await Agent.start("b", peer, pair.destination, lab, port: 4601)
                let image = try GuestImage.find()
                let accelerator = await Accelerator.probe(qemu: program, image: image)
                let console = try await source.run(
                    workload, as: Self.vm, qemu: program, image: image, accelerator: accelerator)
                lab.later("console") { await console.close() }
                try await body(source, destination, console)
            }
        }

        private func move(_ source: Agent, to destination: Agent, _ options: [String]) async throws -> JobStatus {
            try await source.move(Self.vm, to: destination, options)
        }

        private func expectProof(at agent: Agent) async throws { try await agent.expectProof(of: Self.vm) }

        /// What an agent puts into a QEMU.
        private func traces(in agent: Agent) async throws -> [String] {
            let pid = try #require(try await agent.qemuPID(of: Self.vm))
            let names = try FileManager.default.contentsOfDirectory(atPath: "/proc/\(pid)/fd")
            let links = names.compactMap {
                try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/\(pid)/fd/\($0)")
            }
            let maps = try ProcFile.read("/proc/\(pid)/smaps")
            let watched = maps.split(separator: "\n").filter { $0.hasPrefix("VmFlags:") && $0.contains(" uw") }
            return links.filter { $0.contains("userfaultfd") } + watched.map(String.init)
        }

        /// What the lanes may have in flight are 168 ms of this link. A queue that stood from the first pass on would be part of the
        /// pause; QEMU's own blocks and the last pages are some 40 ms of it.
        @Test(.timeLimit(.minutes(3))) func aSlowLinkIsEmptyWhenTheGuestStops() async throws {
            var calm = FaultStage.workload
            calm.pagesPerS = 300
            try await with(QemuProgram.installed, calm, rate: 50_000_000) { source, destination, _ in
                let job = try await move(source, to: destination, ["--port", "direct"])
                print("direct | slow link | \(job.summary?.downtimeMs ?? -1) ms down")
                #expect(job.phase == .completed && job.summary?.slowedTo == nil, "\(job)")
                #expect(job.summary?.downtimeMs.map { $0 < 80 } == true, "\(String(describing: job.summary))")
                try await expectProof(at: destination)
            }
        }

        @Test(.timeLimit(.minutes(4)), arguments: [QemuProgram.installed, QemuProgram.newer].compactMap(\.self))
        func aBusyGuestGoesToAndFro(program: String) async throws {
            try await with(program) { source, destination, _ in
                let there = try await move(source, to: destination, ["--port", "direct", "--verify"])
                #expect(there.phase == .completed && there.summary?.port == .direct, "\(there)")
                #expect(there.summary?.repairedPages == 0)
                #expect((there.summary?.verifiedPages ?? 0) >= UInt64(FaultStage.workload.memoryKiB / 4))
                #expect(there.summary?.installed == ["pc.ram": "mapped"])
                try await expectProof(at: destination)
                let back = try await move(destination, to: source, [])
                #expect(back.phase == .completed && back.summary?.port == .direct && back.notes == [], "\(back)")
                try await expectProof(at: source)
                #expect(try await traces(in: source) == [])
            }
        }

        /// QEMU 7.2 leaves a memfd out of its stream; 10 sends it, and it is dropped.
        @Test(.timeLimit(.minutes(4)), arguments: [QemuProgram.installed, QemuProgram.newer].compactMap(\.self))
        func aMemfd(program: String) async throws {
            var workload = FaultStage.workload
            workload.ram = .memfd
            try await with(program, workload) { source, destination, _ in
                let job = try await move(source, to: destination, ["--port", "direct", "--verify"])
                #expect(job.phase == .completed && job.summary?.port == .direct, "\(job)")
                #expect(job.summary?.repairedPages == 0 && job.notes == [], "\(job)")
                try await expectProof(at: destination)
            }
        }

        @Test(.timeLimit(.minutes(2))) func theStreamPortIsVerifiedToo() async throws {
            try await with(QemuProgram.installed) { source, destination, _ in
                let job = try await move(source, to: destination, ["--port", "stream", "--verify"])
                #expect(job.phase == .completed && job.summary?.port == .stream, "\(job)")
                #expect(job.summary?.repairedPages == 0)
                #expect(job.summary?.hotPages != nil, "hot pages are kept back by this port too")
                #expect((job.summary?.verifiedPages ?? 0) >= UInt64(FaultStage.workload.memoryKiB / 4))
                try await expectProof(at: destination)
            }
        }

        /// A guest that reads a slow disk past all caches while it is moved: several requests always write into pinned
        /// memory, without a page fault. Every block it has read is the right one, before, during and after.
        @Test(
            .enabled(if: DirectDisk.canBeSlow, "needs qemu-storage-daemon and /dev/fuse"), .timeLimit(.minutes(3)),
            arguments: [true, false])
        func aDiskReadPastAllCaches(isDirect: Bool) async throws {
            try await with(QemuProgram.installed, Self.diskReader, rate: nil, slowDisk: true) {
                source, destination, console in
                func expectReads(_ verdicts: [ConsoleTrace.Verdict]) {
                    // What is beyond the region are pages that the disk's readers compared.
                    let region = UInt64(verdicts.count * Self.diskReader.regionMiB * 256)
                    #expect(verdicts.reduce(0) { $0 + $1.pagesChecked } > region + 1000, "\(verdicts)")
                }
                expectReads(try await console.verdicts(20, seconds: 60))
                let job = try await move(
                    source, to: destination, ["--port", isDirect ? "direct" : "stream", "--max-downtime", "500"])
                #expect(job.phase == .completed && job.summary?.port == (isDirect ? .direct : .stream), "\(job)")
                #expect(job.notes.contains { $0.contains("cache.direct=on") } == isDirect, "\(job.notes)")
                let there = try await Console.connect(path: destination.consolePath(of: Self.vm))
                expectReads(try await there.verdicts(20, seconds: 60))
                #expect(console.trace.wrong == [] && console.trace.verdicts.allSatisfy(\.isGood))
                await there.close()
            }
        }

        static var diskReader: Workload {
            var workload = FaultStage.workload
            workload.regionMiB = 8
            workload.hotMiB = 1
            workload.pagesPerS = 100
            return workload
        }

        /// The agent stops the guest for each scan, and dies before it lets it go on: its successor does.
        @Test(.timeLimit(.minutes(2))) func theAgentDiesWhileItHoldsTheGuest() async throws {
            var workload = Self.diskReader
            workload.directDisk = try DirectDisk.image()
            try await FaultStage.with(port: .direct, workload: workload) { stage in
                try await fault("kill -9 between stop and cont", String?.none) {
                    let job = try await stage.begin(heldAt: "source:resumeDrained", holdMs: 20_000)
                    let ticks = stage.console.trace.ticks.count
                    try await ContinuousClock().sleep(for: .milliseconds(500))
                    #expect(stage.console.trace.ticks.count - ticks < 20, "the guest stands still")
                    try await stage.source.kill()
                    try await stage.restart(stage.source)
                    let ended = try await stage.settle(job, .failed)
                    FaultStage.expectsWords(ended.error, code: "agent-restarted")
                    #expect(try await traces(in: stage.source) == [])
                    return ended
                }
            }
        }

        /// With room for hashes of 16 MiB of RAM, pages beyond it travel whole; all of them arrive.
        @Test(.timeLimit(.minutes(2))) func hashesKeepToTheirCap() async throws {
            var peer = ApusPeer(program: ApusPeer.findProgram(), qemu: QemuProgram.installed)
            peer.lineTableMiB = 1
            var workload = FaultStage.workload
            workload.pattern = .few
            try await with(QemuProgram.installed, workload, rate: 200_000_000, peer) { source, destination, _ in
                let job = try await move(source, to: destination, ["--port", "direct", "--mode", "dsm", "--verify"])
                let lines = try #require(job.summary?.lines)
                #expect(job.phase == .completed && job.summary?.repairedPages == 0, "\(job)")
                // Stripes are dealt out to two lanes, and each has half of the room; all of it is needed.
                #expect(lines.tableBytes > 3 << 18 && lines.tableBytes <= 1 << 20, "\(lines)")
                try await expectProof(at: destination)
            }
        }

        @Test(.timeLimit(.minutes(2))) func privateMemoryGoesByTheStream() async throws {
            var workload = FaultStage.workload
            workload.ram = .anonymous
            try await with(QemuProgram.installed, workload) { source, destination, _ in
                let refused = try await source.attempt(
                    ["migrate", Self.vm, destination.endpoint, "--json", "--port", "direct"])
                #expect(refused.exitCode == 1)
                let problem = try Agent.decode(Problem.self, refused.errors)
                FaultStage.expectsWords(problem, code: "port-not-possible")
                #expect("\(problem)".contains("memory-backend-file,share=on"))
                let job = try await move(source, to: destination, [])
                #expect(job.phase == .completed && job.summary?.port == .stream, "\(job)")
                #expect(job.notes.contains { $0.contains("stream port") && $0.contains("memory-backend-file") })
                try await expectProof(at: destination)
            }
        }

        /// Its writes are in no page table of QEMU's.
        @Test(.timeLimit(.minutes(2))) func memoryThatAnotherProcessMaps() async throws {
            try await with(QemuProgram.installed) { source, destination, _ in
                let pid = try #require(try await source.qemuPID(of: Self.vm))
                let bytes = UInt64(FaultStage.workload.memoryKiB) << 10
                let path = try #require(
                    try ProcFile.numbers(in: "/proc/\(pid)/fd").map { "/proc/\(pid)/fd/\($0)" }.first {
                        (try? FileIdentity.of(path: $0))?.size == bytes
                    })
                let window = try GuestWindow(try Descriptor.open(path, .readWrite), fileOffset: 0, byteCount: bytes)
                let refused = try await source.attempt(
                    ["migrate", Self.vm, destination.endpoint, "--json", "--port", "direct"])
                let problem = try Agent.decode(Problem.self, refused.errors)
                FaultStage.expectsWords(problem, code: "port-not-possible")
                #expect("\(problem)".contains("Process \(getpid()) "), "\(problem)")
                withExtendedLifetime(window) {}
            }
        }

        /// Neither an abort nor the death of the agent leaves anything in QEMU.
        @Test(.timeLimit(.minutes(3))) func nothingStaysInQemu() async throws {
            try await FaultStage.with { stage in
                for isKill in [false, true] {
                    try await fault(
                        isKill ? "kill -9 while QEMU is watched" : "abort while QEMU is watched", String?.none
                    ) {
                        let job = try await stage.begin(.laterRound)
                        #expect(try await traces(in: stage.source).count >= 2)
                        if isKill {
                            try await stage.source.kill()
                            try await stage.restart(stage.source)
                        } else {
                            try await stage.source.apus(["job", "abort", job.id])
                        }
                        let ended = try await stage.settle(job, isKill ? .failed : .aborted)
                        #expect(try await traces(in: stage.source) == [])
                        return ended
                    }
                }
            }
        }

        @Test(.timeLimit(.minutes(2))) func nothingOfAPlanStaysInQemu() async throws {
            try await FaultStage.with { stage in
                let (source, host) = (stage.source, stage.destination.endpoint)
                async let cut = source.attempt(["plan", Self.vm, host, "--seconds", "30"])
                for _ in 0..<200 where try await traces(in: source).isEmpty {
                    try await Task.sleep(for: .milliseconds(50))
                }
                #expect(try await !traces(in: source).isEmpty)
                try await source.kill()
                #expect(try await cut.exitCode != 0)
                try await stage.restart(source)
                #expect(try await traces(in: source) == [])
                #expect(try await source.machines().first?.job == nil)
                try await source.apus(["plan", Self.vm, host, "--seconds", "0.5"])
            }
        }
    }
}
