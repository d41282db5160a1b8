import ApusAPI
internal import Foundation

/// Two `apus agent`s, one on each host, used only through the `apus` command as a person would.
public struct ApusPeer: Sendable {
    /// The `apus` program.
    public let program: String
    public let qemu: String
    public var maxDowntimeMs = 300
    public var timeoutS: Double = 150
    /// The destination's migration port.
    static let port = 4600

    public init(program: String, qemu: String) {
        self.program = program
        self.qemu = qemu
    }

    /// `apus` beside this executable: `./dev` builds both into one folder.
    public static func findProgram() -> String {
        if let path = ProcessInfo.processInfo.environment["APUS_PROGRAM"] { return path }
        let own = (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")) ?? CommandLine.arguments[0]
        let beside = URL(fileURLWithPath: own).deletingLastPathComponent().appendingPathComponent("apus").path
        // Under `swift test` this executable is the test bundle or the toolchain's runner.
        return FileManager.default.isExecutableFile(atPath: beside) ? beside : ".build/release/apus"
    }

    /// Boots the guest through Apus, moves it, waits until it has checked all its memory once at the destination.
    ///
    /// - Parameter showing: whether the command's live progress goes to this terminal.
    public func migrate(
        _ workload: Workload, over pair: HostPair, in lab: Lab, image: GuestImage, accelerator: Accelerator,
        showing: Bool = false
    ) async throws -> Outcome {
        let source = try await Agent.start("a", self, pair.source, lab, port: Self.port - 1)
        let destination = try await Agent.start("b", self, pair.destination, lab, port: Self.port)
        let name = "prover"
        try await source.apus(
            ["vm", "run", name, "--", qemu]
                + workload.arguments(run: "{run}", image: image, accelerator: accelerator))
        let here = try await Console.connect(path: source.consolePath(of: name))
        try await here.verdicts(1, seconds: 90)
        try await ContinuousClock().sleep(for: .seconds(1))

        var outcome = Outcome(peer: "apus", workload: workload.name, rate: pair.rate)
        let wire = try await pair.wireBytes()
        let agents = (CPUTime.of(pid: source.process.pid), CPUTime.of(pid: destination.process.pid))
        let sourceQemu = try await source.qemuPID(of: name)
        let sourceCPU = sourceQemu.flatMap(CPUTime.of(pid:))
        let started = ContinuousClock.now
        // The destination's console is there as soon as its QEMU is, long before the guest runs in it.
        async let there = Console.connect(path: destination.consolePath(of: name), seconds: timeoutS)
        let job = try await migrate(name, from: source, to: "\(pair.destination.address):\(Self.port)", showing: showing)
        let ended = ContinuousClock.now
        outcome.totalMs = (ended - started).milliseconds
        guard job.phase == .completed else {
            throw LabError.migrationFailed(peer: "apus", reason: job.error?.description ?? "phase \(job.phase.rawValue)")
        }
        let console = try await there
        outcome.prepareMs = (console.connected - started).milliseconds
        outcome.reportedDowntimeMs = job.summary?.downtimeMs
        outcome.rounds = job.summary?.rounds
        if let wire, let now = try await pair.wireBytes() { outcome.wireBytes = (now - wire).both }
        outcome.agentCPUSource = spent(source.process.pid, since: agents.0)?.process
        outcome.agentCPUDestination = spent(destination.process.pid, since: agents.1)?.process
        outcome.qemuCPUSource = sourceQemu.flatMap { spent($0, since: sourceCPU) }?.besideGuest
        outcome.qemuCPUDestination = try await destination.qemuPID(of: name).flatMap(CPUTime.of(pid:))?.besideGuest
        do {
            try await console.verdicts(2, seconds: 60)
        } catch LabError.guestWrong {
            // A result, not a fault of the experiment; the count of wrong pages tells.
        }
        outcome.take(source: here.trace, destination: console.trace, started: started, ended: ended)
        for open in [here, console] { await open.close() }
        _ = try? await destination.apus(["vm", "stop", name])
        return outcome
    }

    private func spent(_ pid: Int32, since earlier: CPUTime?) -> CPUTime? {
        guard let earlier, let now = CPUTime.of(pid: pid) else { return nil }
        return CPUTime(process: now.process - earlier.process, vcpus: now.vcpus - earlier.vcpus)
    }

    /// `apus migrate NAME HOST --json`; its last line of standard output is the finished job.
    private func migrate(_ name: String, from agent: Agent, to host: String, showing: Bool) async throws -> JobStatus {
        var words = ["migrate", name, host, "--json", "--max-downtime", "\(maxDowntimeMs)"]
        if showing { words.append("--verbose") }
        let text = try await agent.apus(words, seconds: timeoutS, showing: showing)
        let decoder = JSONDecoder()
        decoder.dateDecodingStrategy = .iso8601
        return try decoder.decode(JobStatus.self, from: Data(text.utf8))
    }
}

/// One agent and the folders it was given.
public struct Agent: Sendable {
    public let process: LabProcess
    let program: String
    let run: String

    /// Starts `apus agent` on a host and waits until it answers.
    public static func start(_ name: String, _ peer: ApusPeer, _ host: Host, _ lab: Lab, port: Int) async throws -> Agent {
        let run = try lab.makeFolder("\(name)/run")
        let state = try lab.makeFolder("\(name)/state")
        let process = try await lab.start(
            "agent-\(name)",
            host.command([
                peer.program, "agent", "--state", state, "--run", run, "--listen", "\(host.address):\(port)", "--insecure",
                "--log-format", "json",
            ]))
        let agent = Agent(process: process, program: peer.program, run: run)
        try await wait(for: "the agent \(name) to answer", seconds: 20, every: .milliseconds(50)) {
            try process.mustRun()
            guard FileManager.default.fileExists(atPath: agent.socket) else { return nil as String? }
            return try? await agent.apus(["vm", "list", "--json"])
        }
        // QEMUs that an agent started are its own to end; what a killed agent leaves is ended by its process id.
        lab.later("virtual machines of agent \(name)") { await agent.endMachines() }
        return agent
    }

    public var socket: String { "\(run)/agent.sock" }
    public func consolePath(of vm: String) -> String { "\(run)/vms/\(vm)/console.sock" }

    /// Runs `apus --agent SOCKET …`.
    @discardableResult
    public func apus(_ words: [String], seconds: Double = 30, showing: Bool = false) async throws -> String {
        try await command([program, "--agent", socket] + words, seconds: seconds, showing: showing)
    }

    public func machines() async throws -> [MachineSummary] {
        try JSONDecoder().decode([MachineSummary].self, from: Data(try await apus(["vm", "list", "--json"]).utf8))
    }

    public func qemuPID(of vm: String) async throws -> Int32? {
        try await machines().first { $0.name == vm }?.pid
    }

    private func endMachines() async {
        guard process.status == nil else { return }
        for machine in (try? await machines()) ?? [] { _ = try? await apus(["vm", "stop", machine.name]) }
    }
}
