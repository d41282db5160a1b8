public import ApusAPI
import ApusQMP
import Foundation
import Logging

/// What the migration engine does with VMs.
extension Machines {
    /// Reserves a resident VM for a job that will move it away.
    ///
    /// - Throws: `Problem` `vm-unknown`, `vm-busy` (names the job), `vm-not-running`, `vm-unresponsive`.
    public func checkOut(_ name: String, job: String) async throws(Problem) -> Machine {
        try await reconnect(name)
        let entry = try entry(name)
        if let other = entry.record.job { throw Self.busy(name, other) }
        let summary = await entry.summary()
        switch summary.state {
        case .running, .paused: break
        case .unresponsive:
            throw Problem(
                "vm-unresponsive", "\(name)'s QEMU does not answer on \(entry.record.qmpPath).",
                advice: "Another program may hold its monitor.")
        case .starting, .incoming, .inDoubt, .stopped:
            throw Problem(
                "vm-not-running", "\(name) is \(summary.state.rawValue) here and cannot be moved.", advice: summary.note
            )
        }
        guard let machine = entry.machine else {
            throw Problem("vm-unresponsive", "\(name)'s monitor does not answer.")
        }
        // Looked at again: other calls ran while QEMU was asked.
        if let other = entries[name]?.record.job { throw Self.busy(name, other) }
        try await change(name) { $0.job = job }
        return machine
    }

    /// The job is over and the VM stays here.
    public func giveBack(_ machine: Machine) async throws(Problem) {
        guard isCurrent(machine) else { return }
        try await change(machine.name) { $0.job = nil }
    }

    /// The VM runs elsewhere now: ends this QEMU, removes the record and the run directory.
    public func departed(_ machine: Machine, to host: String) async {
        logger.info("VM departed", metadata: ["vm": "\(machine.name)", "host": "\(host)"])
        await remove(machine)
    }

    /// Ends a QEMU that was to receive a VM, and removes its files.
    public func discard(_ machine: Machine) async { await remove(machine) }

    /// The VM that arrived belongs to this host. The caller makes it run.
    public func promote(_ machine: Machine) async throws(Problem) {
        guard isCurrent(machine) else { return }
        try await change(machine.name) { record in
            record.phase = .resident
            record.job = nil
            record.note = nil
        }
    }

    /// The VM is loaded and paused here, and nobody has said yet whose it is.
    public func markInDoubt(_ machine: Machine, note: String) async throws(Problem) {
        guard isCurrent(machine) else { return }
        try await change(machine.name) { record in
            record.phase = .inDoubt
            record.note = note
        }
    }

    private func isCurrent(_ machine: Machine) -> Bool { entries[machine.name]?.process === machine.process }

    private func remove(_ machine: Machine) async {
        guard let entry = entries[machine.name], isCurrent(machine) else { return }
        await end(entry)
        guard isCurrent(machine) else { return }
        await forget(machine.name)
    }
}
