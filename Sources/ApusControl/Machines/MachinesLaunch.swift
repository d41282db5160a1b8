public import ApusAPI
import ApusQMP
import ApusSystem
import Foundation
import Logging

extension Machines {
    /// Time a new QEMU gets until its monitor answers.
    static let startTimeout: Duration = .seconds(30)

    /// Starts a VM in the background; it outlives the agent.
    ///
    /// - Throws: `Problem` `name-invalid`, `vm-exists`, `qemu-missing`, `qemu-unusable`, `qemu-start-failed`,
    ///   `memory-unknown`, `machine-type-missing`, those of `QemuCommandLine` and `LaunchPlan`; `CancellationError`.
    public func run(_ request: RunRequest) async throws -> MachineSummary {
        try await reserve(request.name)
        defer { reserved.remove(request.name) }
        let line = try QemuCommandLine(request.command)
        guard let ramBytes = try line.memoryBytes() else {
            throw Problem(
                "memory-unknown", "The command of \(request.name) does not say how much memory the VM has.",
                advice: "Add -m, for example -m 1024.")
        }
        // What the operator gave decides the definition; QEMU then says what it made of it.
        let draft = MachineDefinition(
            name: request.name, command: request.command, workingDirectory: request.workingDirectory,
            machineType: line.machineType ?? "", ramBytes: ramBytes, vcpus: 1, qemuVersion: "", origin: .run)
        let machine = try await launch(draft, .run)
        do {
            try await enter(machine, phase: .resident, qmpPath: machine.qmp.path, job: nil)
        } catch {
            await abandon(machine)
            throw error
        }
        logger.info("VM started", metadata: ["vm": "\(machine.name)", "pid": "\(machine.pid)"])
        return await (try entry(machine.name)).summary()
    }

    /// Starts a QEMU that waits, paused, to be filled with this VM; it listens nowhere until told by
    /// `migrate-incoming`.
    ///
    /// - Parameter owningMemory: see ``LaunchPlan/Purpose``.
    /// - Throws: `Problem` as `run`, and `memory-lacking`, `machine-type-missing`; `CancellationError`.
    public func launchIncoming(
        _ definition: MachineDefinition, job: String, owningMemory: Bool = false
    ) async throws -> Machine {
        try await reserve(definition.name)
        defer { reserved.remove(definition.name) }
        try HostMemory.check(vm: definition.name, bytes: definition.ramBytes, promised: promisedBytes)
        var arriving = definition
        arriving.origin = .migrated
        let machine = try await launch(
            arriving, .incoming(machineType: definition.machineType, owningMemory: owningMemory))
        do {
            try await enter(machine, phase: .incoming, qmpPath: machine.qmp.path, job: job)
        } catch {
            await abandon(machine)
            throw error
        }
        return machine
    }

    /// Memory of VMs that are arriving: they take it bit by bit, so the kernel still counts it as free.
    private var promisedBytes: UInt64 {
        entries.values.filter { $0.record.phase == .incoming && !$0.isGone }.reduce(0) {
            $0 + $1.record.definition.ramBytes
        }
    }

    private func launch(_ draft: MachineDefinition, _ purpose: LaunchPlan.Purpose) async throws -> Machine {
        let line = try QemuCommandLine(draft.command)
        let (directory, directoryNote) = workingDirectory(of: draft)
        let binary = try await catalog.binary(launcher: line.launcher, workingDirectory: directory)
        let isIncoming = purpose != .run
        let wanted = isIncoming ? draft.machineType : line.machineType
        guard let type = binary.machineType(wanted) else {
            throw Problem(
                "machine-type-missing",
                "QEMU \(binary.version) on this host has no machine type \(wanted ?? "by default") that \(draft.name) needs.",
                advice: isIncoming ? "Install a QEMU at least as new as the source's (\(draft.qemuVersion))." : nil)
        }
        let run = try makeRunDirectory(ofVM: draft.name)
        do {
            let plan = try LaunchPlan(
                name: draft.name, command: draft.command, ramBytes: draft.ramBytes,
                purpose: purpose,
                place: .init(
                    runDirectory: run, ramDirectory: config.ramDirectory,
                    ramRoomBytes: (try? FileSystemRoom.available(path: config.ramDirectory)) ?? 0,
                    defaultRAMID: type.defaultRAMID))
            return try await start(draft, plan, directory: directory, run: run, notes: plan.notes + directoryNote)
        } catch {
            removeDirectory(run)
            throw error
        }
    }

    private func start(
        _ draft: MachineDefinition, _ plan: LaunchPlan, directory: String?, run: String, notes: [String]
    ) async throws -> Machine {
        let log = LaunchPlan.logPath(runDirectory: run)
        let executable = try Executable.find(plan.command[0], workingDirectory: directory)
        let process: ProcessHandle
        do {
            process = try ProcessHandle.spawn(
                SpawnRequest(
                    executable: executable, arguments: Array(plan.command.dropFirst()), workingDirectory: directory,
                    logPath: log))
        } catch {
            throw Problem("qemu-start-failed", "\(executable) could not be started: \(error.reason).")
        }
        do {
            let qmp = try await QemuStart.monitor(
                of: process, path: LaunchPlan.qmpPath(runDirectory: run), timeout: Self.startTimeout)
            // A launcher may have forked: the VM is the process behind the monitor.
            let qemu = qmp.peerPID == process.pid ? process : try ProcessHandle.open(pid: qmp.peerPID)
            return Machine(
                definition: try await definition(of: draft, qmp), qmp: qmp, runDirectory: run, logPath: log,
                launchNotes: notes, process: qemu)
        } catch {
            let said = QemuStart.lastWords(log)
            let exit = process.exit
            try? process.signal(SIGKILL)
            _ = await process.exited()
            if error is CancellationError { throw error }
            let how = exit.map { "QEMU \($0.told)" } ?? "QEMU did not get ready (\(error))"
            throw Problem(
                "qemu-start-failed",
                "\(draft.name) could not be started on this host: \(how)\(said.isEmpty ? "." : ": \(said).")",
                advice: (["Every file and device of its command must be here too."] + notes).joined(separator: " "))
        }
    }

    /// What arrives was resolved at its source, and is the same here or QEMU would not have started: every question would
    /// only make the migration longer.
    private func definition(of draft: MachineDefinition, _ qmp: QMPClient) async throws -> MachineDefinition {
        guard draft.origin == .migrated else { return try await Self.resolved(draft, qmp) }
        var definition = draft
        definition.qemuVersion = qmp.version.description
        return definition
    }

    /// The definition with what only the running QEMU knows.
    static func resolved(_ draft: MachineDefinition, _ qmp: QMPClient) async throws -> MachineDefinition {
        var definition = draft
        let type = try await qmp.execute(.qomGet(path: "/machine", property: "type")).string ?? ""
        definition.machineType = type.hasSuffix("-machine") ? String(type.dropLast("-machine".count)) : type
        definition.ramBytes = try await qmp.execute(.queryMemorySizeSummary).baseMemory
        definition.vcpus = try await qmp.execute(.queryCPUsFast).count
        definition.qemuVersion = qmp.version.description
        return definition
    }

    /// A directory of the other host may not exist here; only relative paths need it.
    private func workingDirectory(of definition: MachineDefinition) -> (path: String?, note: [String]) {
        guard let path = definition.workingDirectory else { return (nil, []) }
        var isDirectory = false
        if let kind = try? FileManager.default.attributesOfItem(atPath: path)[.type] as? FileAttributeType {
            isDirectory = kind == .typeDirectory || kind == .typeSymbolicLink
        }
        if isDirectory { return (path, []) }
        return ("/", ["The VM's working directory \(path) is not on this host; relative paths start at /."])
    }

    /// A started QEMU that could not be recorded.
    private func abandon(_ machine: Machine) async {
        try? machine.signal(SIGKILL)
        _ = await machine.exited()
        await machine.qmp.close()
        removeDirectory(machine.runDirectory)
    }
}
