import ApusAPI
import ApusQMP
import ApusSystem

/// One row of the registry.
struct MachineEntry {
    var record: MachineRecord
    /// nil: the process lives (or did) but its monitor could not be reached.
    var machine: Machine?
    var process: ProcessHandle

    var name: String { record.name }
    var isGone: Bool { process.exit != nil }
}

extension MachineEntry {
    /// Time a monitor gets when somebody lists VMs.
    static let statusTimeout: Duration = .seconds(2)

    func summary(state: MachineState, note: String? = nil) -> MachineSummary {
        let definition = record.definition
        return MachineSummary(
            name: definition.name, state: state, origin: definition.origin, pid: isGone ? nil : record.process.pid,
            machineType: definition.machineType, qemuVersion: definition.qemuVersion,
            memoryBytes: definition.ramBytes, vcpus: definition.vcpus, qmpPath: record.qmpPath,
            command: definition.command, job: record.job, note: note ?? record.note)
    }

    /// Asks QEMU how it is.
    func summary() async -> MachineSummary {
        if isGone { return summary(state: .stopped) }
        guard let machine else {
            return summary(state: .unresponsive, note: "Its monitor \(record.qmpPath) does not answer.")
        }
        switch record.phase {
        case .incoming: return summary(state: .incoming)
        case .inDoubt: return summary(state: .inDoubt)
        case .resident: break
        }
        do {
            let status = try await machine.qmp.execute(.queryStatus, timeout: Self.statusTimeout)
            if status.running { return summary(state: .running) }
            return summary(state: status.status == .inMigrate ? .incoming : .paused, note: Self.note(on: status.status))
        } catch {
            if process.exit != nil { return summary(state: .stopped) }
            return summary(state: .unresponsive, note: "\(error)")
        }
    }

    private static func note(on state: RunState) -> String? {
        switch state {
        case .internalError: "QEMU stopped it after an internal error (KVM); `apus vm stop --force` ends it."
        case .ioError: "A disk failed and QEMU paused the guest; mend the disk, then `cont` in its monitor."
        case .guestPanicked: "The guest's kernel panicked."
        case .shutdown: "The guest has shut down; QEMU waits because of -no-shutdown."
        case .postMigrate: "Its state was sent to another host; only that copy may run."
        case .running, .paused, .prelaunch, .inMigrate, .finishMigrate, .suspended, .watchdog, .saveVM, .restoreVM,
            .debug, .colo, .other:
            nil
        }
    }
}
