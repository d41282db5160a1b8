public import ApusAPI
import ApusQMP
import ApusSystem
import Foundation
public import Logging

/// Every VM that this agent has hold of, by name.
///
///     run ──────────▶ resident ──checkOut──▶ resident + job ──departed──▶ (gone)
///     adopt ────────▶    ▲                        │ giveBack
///                        ├────────────────────────┘
///     launchIncoming ▶ incoming + job ──promote──▶ resident
///                        │     └─markInDoubt──▶ inDoubt + job ──promote──▶ resident
///                        └──discard──▶ (gone) ◀──discard──┘
///
/// Each change is in the store before the call returns, so a restarted agent goes on from there (`restore`).
public actor Machines {
    let config: AgentConfig
    let store: Store
    let logger: Logger
    let catalog: QemuCatalog
    var entries: [String: MachineEntry] = [:]
    /// Names that a call in progress will fill: the actor is re-entered at every `await`.
    var reserved: Set<String> = []

    public init(config: AgentConfig, store: Store, logger: Logger) {
        self.config = config
        self.store = store
        self.logger = logger
        catalog = QemuCatalog(runDirectory: config.runDirectory)
    }

    // MARK: Looking

    /// See ``QemuCatalog/warmUp()``.
    func warmUp() async { await catalog.warmUp() }

    /// All VMs by name, each asked how it is.
    public func list() async -> [MachineSummary] {
        let all = Array(entries.values)
        return await withTaskGroup(of: MachineSummary.self) { group in
            for entry in all { group.addTask { await entry.summary() } }
            var summaries: [MachineSummary] = []
            for await summary in group { summaries.append(summary) }
            return summaries.sorted { $0.name < $1.name }
        }
    }

    /// - Throws: `Problem` `vm-unknown`.
    public func show(_ name: String) async throws(Problem) -> MachineSummary {
        try await reconnect(name)
        return await (try entry(name)).summary()
    }

    /// The handle of a VM whatever happens to it; for looking, not for changing.
    public func machine(_ name: String) -> Machine? { entries[name]?.machine }

    /// How each VM is recorded, for deciding about interrupted jobs after `restore`.
    public func records() -> [MachineRecord] { entries.values.map(\.record).sorted { $0.name < $1.name } }

    func entry(_ name: String) throws(Problem) -> MachineEntry {
        guard let entry = entries[name] else {
            let known = entries.keys.sorted().prefix(5).joined(separator: ", ")
            throw Problem(
                "vm-unknown", "This host has no VM \"\(name)\".",
                advice: known.isEmpty ? "It has none at all; see `apus vm run`." : "It has: \(known).")
        }
        return entry
    }

    // MARK: Stopping

    /// Time a guest gets to shut itself down.
    static let powerdownPatience: Duration = .seconds(15)
    /// Time QEMU gets to quit before it is killed.
    static let quitPatience: Duration = .seconds(3)

    /// Ends a VM and forgets it: by the guest's power button, or at once with `force`. The record of a VM that has
    /// already stopped is removed.
    ///
    /// - Throws: `Problem` `vm-unknown`, `vm-busy`, `vm-still-running`.
    public func stop(_ name: String, force: Bool) async throws(Problem) -> MachineSummary {
        let entry = try entry(name)
        if let job = entry.record.job, !entry.isGone { throw Self.busy(name, job) }
        if !entry.isGone {
            if force {
                await end(entry)
            } else {
                try await powerdown(entry)
            }
        }
        await forget(name)
        return entry.summary(state: .stopped)
    }

    private func powerdown(_ entry: MachineEntry) async throws(Problem) {
        guard let machine = entry.machine else {
            throw Problem(
                "vm-still-running", "\(entry.name)'s monitor does not answer.",
                advice: "`apus vm stop --force \(entry.name)` kills its QEMU.")
        }
        let running = (try? await machine.qmp.execute(.queryStatus))?.running ?? false
        // A paused guest cannot see its power button.
        _ = try? await machine.qmp.execute(running ? .systemPowerdown : .quit)
        guard await entry.process.ends(within: running ? Self.powerdownPatience : Self.quitPatience) else {
            throw Problem(
                "vm-still-running", "\(entry.name) did not shut itself down within \(Self.powerdownPatience).",
                advice: "The guest may not listen to its power button: `apus vm stop --force \(entry.name)`.")
        }
    }

    /// QEMU's end, politely and then surely.
    func end(_ entry: MachineEntry) async {
        if let machine = entry.machine {
            _ = try? await machine.qmp.execute(.quit, timeout: Self.quitPatience)
            if await entry.process.ends(within: Self.quitPatience) { return }
        }
        try? entry.process.signal(SIGKILL)
        _ = await entry.process.exited()
    }

    /// Removes the record and the run directory.
    func forget(_ name: String) async {
        guard let entry = entries.removeValue(forKey: name) else { return }
        await entry.machine?.qmp.close()
        removeDirectory(entry.record.runDirectory)
        do { try await store.removeMachine(name) } catch {
            logger.error("VM record not removed", metadata: ["vm": "\(name)", "problem": "\(error)"])
        }
    }

    static func busy(_ name: String, _ job: String) -> Problem {
        Problem(
            "vm-busy", "\(name) is being moved by job \(job).",
            advice: "Wait for it (`apus job watch \(job)`) or abort it (`apus job abort \(job)`).")
    }

    // MARK: Bookkeeping

    /// Takes a name for a call in progress; a VM that has stopped gives its name up.
    ///
    /// - Throws: `Problem` `name-invalid`, `vm-exists`.
    func reserve(_ name: String) async throws(Problem) {
        try MachineDefinition.check(name: name)
        let taken = reserved.contains(name) || entries[name].map { !$0.isGone } == true
        guard !taken else {
            throw Problem(
                "vm-exists", "This host already has a VM \"\(name)\".",
                advice: "Choose another name, or end that one with `apus vm stop \(name)`.")
        }
        reserved.insert(name)
        await forget(name)
    }

    /// Puts a new VM in the registry and in the store, and watches its process.
    func enter(_ machine: Machine, phase: MachinePhase, qmpPath: String, job: String?) async throws(Problem) {
        let record = MachineRecord(
            definition: machine.definition, phase: phase, process: machine.identity, qmpPath: qmpPath,
            runDirectory: machine.runDirectory, job: job, note: machine.launchNotes.first)
        try await store.save(record)
        entries[machine.name] = MachineEntry(record: record, machine: machine, process: machine.process)
        watch(machine.name, machine.process)
    }

    func watch(_ name: String, _ process: ProcessHandle) {
        Task { [weak self] in
            guard let exit = await process.exited() else { return }
            await self?.ended(name, process, exit)
        }
    }

    private func ended(_ name: String, _ process: ProcessHandle, _ exit: ProcessExit) async {
        guard let entry = entries[name], entry.process === process else { return }
        let said = entry.machine?.lastWords ?? ""
        let note = "QEMU \(exit.told)\(said.isEmpty ? "." : ": \(said)")"
        logger.notice("QEMU ended", metadata: ["vm": "\(name)", "pid": "\(process.pid)", "how": "\(exit.told)"])
        try? await change(name) { $0.note = note }
    }

    /// Changes a record here and in the store.
    func change(_ name: String, _ body: (inout MachineRecord) -> Void) async throws(Problem) {
        guard var entry = entries[name] else { return }
        body(&entry.record)
        entries[name] = entry
        try await store.save(entry.record)
    }

    /// - Throws: `Problem` `directory-unusable`.
    func makeRunDirectory(ofVM name: String) throws(Problem) -> String {
        let path = config.runDirectory(ofVM: name)
        removeDirectory(path)
        do {
            try FileManager.default.createDirectory(
                atPath: path, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
        } catch {
            throw Problem("directory-unusable", "The directory \(path) cannot be made: \(error.localizedDescription).")
        }
        return path
    }

    /// Only ever a directory below our own `vms`.
    func removeDirectory(_ path: String) {
        guard path.hasPrefix(config.runDirectory + "/vms/") else { return }
        try? FileManager.default.removeItem(atPath: path)
    }
}
