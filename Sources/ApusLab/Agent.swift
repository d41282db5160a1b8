public import ApusAPI
internal import Foundation

/// One `apus agent` and the folders it was given, used only through the `apus` command as a person would.
public struct Agent: Sendable {
    public let process: LabProcess
    /// Where the other agent reaches it: `ADDRESS:PORT`.
    public let endpoint: String
    public let name: String
    private let program: String
    /// Its run directory.
    public let run: String

    /// Starts `apus agent` on a host and waits until it answers. Started again under the same name in the same
    /// laboratory, it is the successor of the one before: same folders, same VMs.
    ///
    /// - Parameter environment: added to the agent's own.
    public static func start(
        _ name: String, _ peer: ApusPeer, _ host: Host, _ lab: Lab, port: Int, environment: [String: String] = [:]
    ) async throws -> Agent {
        let run = try lab.makeFolder("\(name)/run")
        let state = try lab.makeFolder("\(name)/state")
        let endpoint = "\(host.address):\(port)"
        let config = lab.path("\(name)/agent.yaml")
        try peer.configuration.write(toFile: config, atomically: true, encoding: .utf8)
        let variables = environment.map { "\($0.key)=\($0.value)" }.sorted()
        let process = try await lab.start(
            "agent-\(name)",
            host.command(
                (variables.isEmpty ? [] : ["env"] + variables) + [
                    peer.program, "agent", "--state", state, "--run", run, "--listen", endpoint, "--insecure",
                    "--log-format", "json", "--log-level", lab.logs == .detailed ? "debug" : "info",
                    "--config", config,
                ]))
        let agent = Agent(process: process, endpoint: endpoint, name: name, program: peer.program, run: run)
        try await wait(for: "the agent \(name) to answer", seconds: 20, every: .milliseconds(50)) {
            try process.mustRun()
            guard FileManager.default.fileExists(atPath: agent.socket) else { return nil as String? }
            return try? await agent.apus(["vm", "list", "--json"])
        }
        // An agent ends without its VMs, on purpose; the laboratory ends them first.
        lab.later("virtual machines of agent \(name)") { await agent.endMachines() }
        return agent
    }

    public var socket: String { "\(run)/agent.sock" }
    public func consolePath(of vm: String) -> String { "\(run)/vms/\(vm)/console.sock" }

    /// Runs `apus …` with this agent to its end, whatever that is.
    ///
    /// - Parameter wrapper: a program that runs it, as `timeout` does.
    public func attempt(_ words: [String], seconds: Double = 30, through wrapper: [String] = []) async throws
        -> CommandResult
    {
        try await ApusLab.attempt(wrapper + [program] + words, environment: ["APUS_AGENT": socket], seconds: seconds)
    }

    /// Runs `apus …` with this agent.
    @discardableResult
    public func apus(_ words: [String], seconds: Double = 30, showing: Bool = false) async throws -> String {
        try await command([program] + words, environment: ["APUS_AGENT": socket], seconds: seconds, showing: showing)
    }

    /// Boots a guest through the agent; returns when it has checked its memory once.
    public func run(
        _ workload: Workload, as name: String, qemu: String, image: GuestImage, accelerator: Accelerator
    ) async throws -> Console {
        try workload.disk?.make()
        let arguments = workload.arguments(run: "{run}", image: image, accelerator: accelerator)
        try await apus(["vm", "run", name, "--", qemu] + arguments)
        let console = try await Console.connect(path: consolePath(of: name))
        try await console.verdicts(1, seconds: 90)
        return console
    }

    /// Boots a guest as somebody else would, and has the agent adopt it; returns when it has checked its memory once.
    ///
    /// - Parameters:
    ///   - options: more of QEMU's.
    ///   - second: path of another monitor of this QEMU, which the agent does not get.
    public func adopt(
        _ workload: Workload, as name: String, qemu: String, options: [String] = [], second: String? = nil,
        image: GuestImage, accelerator: Accelerator, in lab: Lab
    ) async throws -> Console {
        try workload.disk?.make()
        let folder = try lab.makeFolder("adopted-\(name)")
        func words(run: String) -> [String] {
            [qemu] + options + workload.arguments(run: run, image: image, accelerator: accelerator)
        }
        let monitor = "\(folder)/qmp.sock"
        let monitors = [monitor, second].compactMap(\.self).flatMap { ["-qmp", "unix:\($0),server=on,wait=off"] }
        let process = try await lab.start("adopted-\(name)", words(run: folder) + monitors)
        try await wait(for: "the monitor of \(name)", seconds: 20) {
            try process.mustRun()
            return FileManager.default.fileExists(atPath: monitor) ? true : nil
        }
        try await apus(["vm", "adopt", "--qmp", monitor, "--name", name, "--"] + words(run: "{run}"))
        let console = try await Console.connect(path: "\(folder)/console.sock")
        try await console.verdicts(1, seconds: 90)
        return console
    }

    /// `apus migrate NAME HOST`: the completed job, with what it told on its way unless that went to this terminal.
    ///
    /// - Parameter showing: the command's own progress goes to this terminal.
    /// - Throws: `LabError.migrationFailed` with the job's own reason; `LabError.commandFailed` when there was no job.
    public func migrate(
        _ name: String, to host: String, _ peer: ApusPeer, showing: Bool = false
    ) async throws -> JobHistory {
        let words = ["migrate", name, host, "--verbose"] + peer.migrateOptions
        if showing {
            try await apus(words, seconds: peer.patienceS, showing: true)
            return JobHistory(updates: [try await latestJob(of: name)])
        }
        let result = try await attempt(words + ["--json"], seconds: peer.patienceS)
        guard let history = try? JobHistory(lines: result.output) else {
            throw LabError.commandFailed(
                command: words.joined(separator: " "), status: result.status, output: result.errors + result.output)
        }
        let job = history.job
        guard job.phase == .completed else {
            throw LabError.migrationFailed(
                peer: peer.label, reason: job.error?.description ?? "it is \(job.phase.rawValue) \(result.errors)")
        }
        return history
    }

    public func contentStore() async throws -> StoreReport {
        try Self.decode(StoreReport.self, try await apus(["store", "show", "--json"]))
    }

    /// Returns when every disk of the guests here is indexed, or cannot be.
    public func waitForIndexes() async throws {
        try await wait(for: "the disks of \(name) to be indexed", seconds: 60) {
            let disks = try await contentStore().disks
            return !disks.isEmpty && disks.allSatisfy { $0.state != "waiting" } ? true : nil
        }
    }

    /// Returns when what the guest has left here is on the disk.
    public func waitForImage(of vm: String) async throws {
        try await wait(for: "the memory image of \(vm) at \(name)", seconds: 60) {
            try await contentStore().images.contains { $0.vm == vm && $0.usedAt != nil } ? true : nil
        }
    }

    public func jobs() async throws -> [JobStatus] {
        try Self.decode([JobStatus].self, try await apus(["job", "list", "--json"]))
    }

    /// - Throws: `LabError.notEnough` when there is none.
    public func latestJob(of vm: String) async throws -> JobStatus {
        guard let job = try await jobs().filter({ $0.vm == vm }).max(by: { $0.startedAt < $1.startedAt }) else {
            throw LabError.notEnough(what: "jobs of \(vm)")
        }
        return job
    }

    public func machines() async throws -> [MachineSummary] {
        try Self.decode([MachineSummary].self, try await apus(["vm", "list", "--json"]))
    }

    public func qemuPID(of vm: String) async throws -> Int32? {
        try await machines().first { $0.name == vm }?.pid
    }

    public static func decode<Value: Decodable>(_ type: Value.Type, _ text: String) throws -> Value {
        try APICoding.decoder().decode(type, from: Data(text.utf8))
    }

    private func endMachines() async {
        guard process.status == nil else { return }
        for machine in (try? await machines()) ?? [] { _ = try? await apus(["vm", "stop", machine.name, "--force"]) }
    }
}
