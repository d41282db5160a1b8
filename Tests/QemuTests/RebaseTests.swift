import ApusAPI
import ApusLab
import ApusQMP
import ApusSystem
import Foundation
import Testing

extension RealGuests {
    /// `--rebase-memory`: a VM that somebody started with plain `-m` goes by the direct port.
    @Suite(.enabled(if: HostPair.canMakeNamespaces && WriteTracker.hostLacks() == nil, "needs root"))
    struct RebaseTests {
        @Test(.timeLimit(.minutes(4)), arguments: [QemuProgram.installed, QemuProgram.newer].compactMap(\.self))
        func aBusyGuestWithPrivateMemory(program: String) async throws {
            try await RebaseStage.with(program) { stage in
                let job = try await stage.move(["--port", "direct", "--rebase-memory", "--verify"])
                #expect(job.phase == .completed && job.summary?.port == .direct, "\(FaultStage.told(job))")
                #expect(job.summary?.repairedPages == 0)
                #expect((job.summary?.verifiedPages ?? 0) >= UInt64(RebaseStage.workload.memoryKiB / 4))
                #expect(job.summary?.installed["pc.ram"] == "mapped")
                #expect(job.notes.contains { $0.contains("moved into a file: 3 pauses") }, "\(job.notes)")
                try await stage.expectProof(at: stage.destination)
            }
        }

        /// QEMU, which has sent all it knows of long before, would stop it then.
        @Test(.timeLimit(.minutes(2))) func anIdleGuestIsNotStoppedBeforeItsTime() async throws {
            var workload = RebaseStage.workload
            (workload.pattern, workload.pagesPerS) = (.idle, 0)
            try await RebaseStage.with(QemuProgram.installed, workload) { stage in
                let job = try await stage.move(["--port", "direct", "--rebase-memory", "--bandwidth", "20"])
                #expect(job.phase == .completed, "\(FaultStage.told(job))")
                let summary = try #require(job.summary)
                let pauseMs = try #require(summary.downtimeMs)
                #expect(summary.totalMs > 2000 && pauseMs < summary.totalMs / 4, "\(pauseMs) of \(summary.totalMs) ms")
                try await stage.expectProof(at: stage.destination)
            }
        }

        /// What is in a file stays there: the next job needs no flag.
        @Test(.timeLimit(.minutes(4))) func anAbortedJobLeavesTheFile() async throws {
            try await RebaseStage.with(QemuProgram.installed) { stage in
                // While it is moved into the file, at once; then while rounds go on.
                for rounds in [0, 2] {
                    let begun = try await stage.begin()
                    try await stage.source.job(of: RebaseStage.vm, seconds: 30) {
                        $0.phase.isFinal || $0.progress.round >= rounds
                    }
                    try await stage.source.apus(["job", "abort", begun.id])
                    let ended = try await stage.source.end(of: begun.id, seconds: 20)
                    #expect(ended.phase == .aborted, "\(FaultStage.told(ended))")
                    try await stage.expectProof()
                }
                let job = try await stage.move([])
                #expect(job.phase == .completed && job.summary?.port == .direct, "\(FaultStage.told(job))")
                #expect(job.notes.contains { $0.contains("in a file that it was given") }, "\(job.notes)")
                try await stage.expectProof(at: stage.destination)
            }
        }

        @Test(.timeLimit(.minutes(4))) func theAgentDiesMeanwhile() async throws {
            try await RebaseStage.with(QemuProgram.installed) { stage in
                _ = try await stage.begin()
                try await wait(for: "a piece to be in the file", seconds: 20, every: .milliseconds(1)) {
                    try stage.isInFile() ? true : nil
                }
                try await stage.source.kill()
                try await stage.restartSource()
                try await stage.expectProof()
                let job = try await stage.move(["--port", "direct", "--rebase-memory"])
                #expect(job.phase == .completed && job.summary?.port == .direct, "\(FaultStage.told(job))")
                try await stage.expectProof(at: stage.destination)
            }
        }

        /// What an agent that died has begun.
        @Test(.timeLimit(.minutes(2))) func memoryThatIsPartlyInAFile() async throws {
            try await RebaseStage.with(QemuProgram.installed) { stage in
                try await stage.source.kill()
                let qmp = try await QMPClient.connect(path: stage.monitor)
                let bytes = UInt64(RebaseStage.workload.memoryKiB) << 10
                let area = try #require(try WriteTracker.Area.mapping(of: stage.pid, byteCount: bytes))
                let rebase = try MemoryRebase.begin(
                    pid: stage.pid, area: area, journal: "\(stage.source.run)/vms/\(RebaseStage.vm)/write-tracker.json")
                #expect(try rebase.prepare())
                try await qmp.execute(.stop)
                try rebase.exchange()
                try await qmp.execute(.cont)
                rebase.close()
                await qmp.close()
                #expect(try stage.isInFile())
                try await stage.restartSource()
                let job = try await stage.move(["--port", "direct", "--rebase-memory", "--verify"])
                #expect(job.phase == .completed && job.summary?.repairedPages == 0, "\(FaultStage.told(job))")
                #expect(job.notes.contains { $0.contains("moved into a file: 2 pauses") }, "\(job.notes)")
                try await stage.expectProof(at: stage.destination)
            }
        }

        /// QEMU migrates from the beginning: what becomes of it, and of its stopped guest.
        @Test(.timeLimit(.minutes(4)), arguments: [false, true])
        func theAgentDiesLater(isStopped: Bool) async throws {
            let held = "destination:record-prepared"
            try await RebaseStage.with(
                QemuProgram.installed, rehearsing: isStopped ? "\(held)=1500" : nil
            ) { stage in
                let begun = try await stage.begin(maxDowntimeMs: isStopped ? FaultStage.converging : FaultStage.endless)
                if isStopped {
                    try await wait(for: "the destination to be held", seconds: 30) {
                        stage.destination.isHeld(at: held) ? true : nil
                    }
                } else {
                    try await stage.source.job(of: RebaseStage.vm, seconds: 30) { $0.progress.round >= 2 }
                }
                try await stage.source.kill()
                try await stage.restartSource()
                let ended = try await stage.source.end(of: begun.id, seconds: 20)
                FaultStage.expectsWords(ended.error, code: "agent-restarted")
                try await stage.expectProof()
                try await wait(for: "the destination to have nothing", seconds: 15) {
                    try await stage.destination.machines().isEmpty ? true : nil
                }
                let job = try await stage.move([])
                #expect(job.phase == .completed && job.summary?.port == .direct, "\(FaultStage.told(job))")
                try await stage.expectProof(at: stage.destination)
            }
        }

        /// Rounds stop the guest too, and end when the gate opens.
        @Test(.timeLimit(.minutes(2))) func aDiskWithDirectIO() async throws {
            let image =
                FileManager.default.temporaryDirectory.path + "/apus-rebase-\(UInt32.random(in: 0...UInt32.max)).img"
            defer { try? FileManager.default.removeItem(atPath: image) }
            #expect(FileManager.default.createFile(atPath: image, contents: Data(count: 8 << 20)))
            let disk = [
                "-drive", "if=none,id=direct,file=\(image),format=raw,cache=none,file.locking=off",
                "-device", "virtio-blk-pci,drive=direct",
            ]
            try await RebaseStage.with(QemuProgram.installed, options: disk) { stage in
                let job = try await stage.move(["--port", "direct", "--rebase-memory", "--verify"])
                #expect(job.phase == .completed && job.summary?.repairedPages == 0, "\(FaultStage.told(job))")
                #expect(job.notes.contains { $0.contains("cache.direct=on") }, "\(job.notes)")
                try await stage.expectProof(at: stage.destination)
            }
        }

        /// The destination would make it private again.
        @Test(.timeLimit(.minutes(2))) func memoryThatItsCommandChooses() async throws {
            var workload = RebaseStage.workload
            workload.ram = .anonymous
            try await RebaseStage.with(QemuProgram.installed, workload) { stage in
                let refused = try await stage.move(["--port", "direct", "--rebase-memory"])
                #expect(refused.phase == .failed && refused.summary?.port == nil, "\(FaultStage.told(refused))")
                FaultStage.expectsWords(refused.error, code: "port-not-possible")
                #expect(try !stage.isInFile())
                let job = try await stage.move(["--rebase-memory"])
                #expect(job.phase == .completed && job.summary?.port == .stream, "\(FaultStage.told(job))")
                #expect(job.notes.contains { $0.contains("chooses a memory backend") }, "\(job.notes)")
                try await stage.expectProof(at: stage.destination)
            }
        }

        /// Between `stop` and `cont`: its successor lets the guest go on, but not one that its operator has paused.
        @Test(.timeLimit(.minutes(2)), arguments: [true, false])
        func theAgentDiesInAPause(isOurs: Bool) async throws {
            try await RebaseStage.with(QemuProgram.installed) { stage in
                try await stage.source.kill()
                let mark = "\(stage.source.run)/vms/\(RebaseStage.vm)/short-pause"
                if isOurs { #expect(FileManager.default.createFile(atPath: mark, contents: nil)) }
                let qmp = try await QMPClient.connect(path: stage.monitor)
                try await qmp.execute(.stop)
                await qmp.close()
                try await stage.restartSource()
                let state = try await stage.source.machines().first?.state
                #expect(state == (isOurs ? .running : .paused))
                #expect(!FileManager.default.fileExists(atPath: mark))
                if isOurs { return try await stage.expectProof() }
                // With nothing to send QEMU would be done at once.
                let job = try await stage.move(["--port", "direct", "--rebase-memory", "--verify"])
                #expect(job.phase == .completed && job.summary?.repairedPages == 0, "\(FaultStage.told(job))")
                #expect(try await stage.destination.machines().first?.state == .paused)
            }
        }
    }
}

/// Two agents, the first of which has adopted a guest with private RAM.
final class RebaseStage {
    static let vm = "g"
    /// Three pieces.
    static var workload: Workload {
        var workload = FaultStage.workload
        workload.memoryKiB = 520 * 1024 + 8
        return workload
    }

    let destination: Agent
    let monitor: String
    private(set) var source: Agent
    private let lab: Lab
    private let pair: HostPair
    private let peer: ApusPeer
    private let console: Console
    /// QEMU's.
    let pid: Int32

    private init(
        _ lab: Lab, _ program: String, _ workload: Workload, options: [String], rehearsing: String?
    ) async throws {
        self.lab = lab
        pair = try await HostPair.make(in: lab, rate: 1_000_000_000)
        peer = ApusPeer(program: ApusPeer.findProgram(), qemu: program)
        source = try await Agent.start("a", peer, pair.source, lab, port: 4600)
        destination = try await Agent.start(
            "b", peer, pair.destination, lab, port: 4601,
            environment: rehearsing.map { ["APUS_REHEARSE": $0] } ?? [:])
        let image = try GuestImage.find()
        console = try await source.adopt(
            workload, as: Self.vm, qemu: program, options: options, image: image,
            accelerator: await Accelerator.probe(qemu: program, image: image), in: lab)
        pid = try #require(try await source.qemuPID(of: Self.vm))
        monitor = lab.path("adopted-\(Self.vm)/qmp.sock")
    }

    /// - Parameter rehearsing: where the destination is held, see ``FaultStage``.
    static func with(
        _ program: String, _ workload: Workload = RebaseStage.workload, options: [String] = [],
        rehearsing: String? = nil,
        _ body: (RebaseStage) async throws -> Void
    ) async throws {
        try await Lab.with(logs: .asked) { lab in
            let stage = try await RebaseStage(
                lab, program, workload, options: options, rehearsing: rehearsing)
            try await body(stage)
            await stage.console.close()
        }
    }

    func restartSource() async throws {
        source = try await Agent.start("a", peer, pair.source, lab, port: 4600)
    }

    /// The whole job.
    func move(_ options: [String]) async throws -> JobStatus {
        let text = try await source.attempt(
            ["migrate", Self.vm, destination.endpoint, "--json"] + options, seconds: 90)
        return try Agent.decode(JobStatus.self, text.output)
    }

    func begin(maxDowntimeMs: Int = FaultStage.endless) async throws -> JobStatus {
        let text = try await source.apus([
            "migrate", Self.vm, destination.endpoint, "--detach", "--json", "--max-downtime", "\(maxDowntimeMs)",
            "--port", "direct", "--rebase-memory",
        ])
        return try Agent.decode(JobStatus.self, text)
    }

    /// Some of the guest's RAM is.
    func isInFile() throws -> Bool {
        try ProcFile.read("/proc/\(pid)/maps").contains(MemoryRebase.filePrefix)
    }

    /// The guest runs where it was, and a whole check that began now finds every page right.
    func expectProof() async throws {
        try await console.verdicts(console.trace.verdicts.count + 2, seconds: 60)
    }

    func expectProof(at agent: Agent) async throws {
        let there = try await Console.connect(path: agent.consolePath(of: Self.vm))
        try await there.verdicts(2, seconds: 60)
        await there.close()
    }
}
