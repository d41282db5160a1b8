public import ApusAPI
import ApusQMP
import ApusSystem
import Foundation
import Logging

extension Machines {
    /// Time a monitor of a running QEMU gets to greet us.
    static let adoptTimeout: Duration = .seconds(3)

    /// Takes hold of a running QEMU by its monitor socket, changing nothing in it.
    ///
    /// - Throws: `Problem` `qmp-unreachable`, `qmp-busy`, `process-hidden`, `already-managed`, `name-missing`,
    ///   `memory-differs`, `vm-exists`, `name-invalid`; `CancellationError`.
    public func adopt(_ request: AdoptRequest) async throws -> MachineSummary {
        let qmp = try await Self.attach(request.qmpPath)
        do {
            let machine = try await adopt(request, qmp)
            logger.info("VM adopted", metadata: ["vm": "\(machine.name)", "pid": "\(machine.pid)"])
            return await (try entry(machine.name)).summary()
        } catch {
            await qmp.close()
            throw error
        }
    }

    private func adopt(_ request: AdoptRequest, _ qmp: QMPClient) async throws -> Machine {
        guard qmp.peerPID > 0, let process = try? ProcessHandle.open(pid: qmp.peerPID),
            let running = Self.commandLine(of: qmp.peerPID)
        else {
            throw Problem(
                "process-hidden",
                "The process behind \(request.qmpPath) (pid \(qmp.peerPID)) cannot be seen by the agent.",
                advice: "The agent must run in the same PID namespace as QEMU, as its user or as root.")
        }
        if let same = entries.values.first(where: { $0.record.process == process.identity }) {
            throw Problem("already-managed", "This QEMU (pid \(process.pid)) is already managed as \"\(same.name)\".")
        }
        guard let name = try await qmp.execute(.queryName).name ?? request.name else {
            throw Problem(
                "name-missing", "The QEMU behind \(request.qmpPath) has no name.", advice: "Give one: --name NAME.")
        }
        let chosen = request.name ?? name
        try await reserve(chosen)
        defer { reserved.remove(chosen) }

        var line = try QemuCommandLine(request.command ?? running.words)
        line.removeMonitor(at: request.qmpPath)
        let draft = MachineDefinition(
            name: chosen, command: line.command, workingDirectory: running.directory, machineType: "", ramBytes: 0,
            vcpus: 1, qemuVersion: "", origin: .adopted)
        let definition = try await Self.resolved(draft, qmp)
        if let bytes = try line.memoryBytes(), bytes != definition.ramBytes {
            throw Problem(
                "memory-differs",
                "The command given for \(chosen) has \(bytes >> 10) KiB of memory, the running VM \(definition.ramBytes >> 10) KiB.",
                advice: "The destination's -m must be the running VM's.")
        }
        let machine = Machine(
            definition: definition, qmp: qmp, runDirectory: try makeRunDirectory(ofVM: chosen), logPath: nil,
            process: process)
        try await enter(machine, phase: .resident, qmpPath: request.qmpPath, job: nil)
        return machine
    }

    private static func attach(_ path: String) async throws -> QMPClient {
        do {
            return try await QMPClient.connect(path: path, timeout: adoptTimeout)
        } catch QMPError.timedOut {
            throw Problem(
                "qmp-busy", "The monitor \(path) does not greet: another program is connected to it.",
                advice: "Disconnect it, or give QEMU a second monitor (-qmp unix:OTHER,server=on,wait=off).")
        } catch let error as QMPError {
            throw Problem(
                "qmp-unreachable", "\(error).",
                advice: "Start QEMU with -qmp unix:PATH,server=on,wait=off and give that PATH.")
        }
    }

    /// argv and working directory of a process; nil when it may not be read.
    private static func commandLine(of pid: Int32) -> (words: [String], directory: String?)? {
        guard let bytes = try? ProcFile.bytes("/proc/\(pid)/cmdline"), !bytes.isEmpty else { return nil }
        let words = bytes.split(separator: 0, omittingEmptySubsequences: false).dropLast()
            .map { String(decoding: $0, as: UTF8.self) }
        return (words, try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/\(pid)/cwd"))
    }

    // MARK: After a restart of the agent

    /// Takes hold again of the VMs in the store. Those that ended meanwhile are forgotten, with a warning each.
    ///
    /// - Returns: those found, with what they were doing (`phase`, `job`): whoever moves VMs decides about them.
    /// - Throws: `Problem` of the store.
    public func restore() async throws(Problem) -> [MachineRecord] {
        for record in try await store.machines() {
            let process: ProcessHandle
            do {
                process = try ProcessHandle.open(record.process)
            } catch {
                logger.warning(
                    "VM ended while no agent ran", metadata: ["vm": "\(record.name)", "pid": "\(record.process.pid)"])
                removeDirectory(record.runDirectory)
                try await store.removeMachine(record.name)
                continue
            }
            entries[record.name] = MachineEntry(record: record, machine: nil, process: process)
            watch(record.name, process)
            try await reconnect(record.name)
            if let machine = entries[record.name]?.machine { await ShortPause(machine: machine).takeUp() }
        }
        return records()
    }

    /// Connects the monitor of a VM that lost it; without success the VM stays `unresponsive`.
    func reconnect(_ name: String) async throws(Problem) {
        guard let entry = entries[name], !entry.isGone else { return }
        if let machine = entry.machine, machine.qmp.ended == nil { return }
        let record = entry.record
        guard let qmp = try? await QMPClient.connect(path: record.qmpPath, timeout: Self.adoptTimeout) else {
            logger.warning("monitor does not answer", metadata: ["vm": "\(name)", "qmp": "\(record.qmpPath)"])
            return
        }
        guard qmp.peerPID == entry.process.pid, entries[name]?.process === entry.process else {
            await qmp.close()
            return
        }
        let log = LaunchPlan.logPath(runDirectory: record.runDirectory)
        entries[name]?.machine = Machine(
            definition: record.definition, qmp: qmp, runDirectory: record.runDirectory,
            logPath: FileManager.default.fileExists(atPath: log) ? log : nil, process: entry.process)
    }
}
