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

    /// The VM runs here, but its job is not done with it.
    func markArriving(_ machine: Machine, note: String) async throws(Problem) {
        guard isCurrent(machine) else { return }
        try await change(machine.name) { record in
            record.phase = .resident
            record.note = note
        }
    }

    // MARK: By name and job, for sessions whose QEMU may be gone

    /// What there is of a VM that a job was moving.
    enum Recovered {
        case gone
        /// Its process lives, its monitor does not answer: ask again.
        case unresponsive
        case found(Machine)
    }

    /// - Parameter orPromoted: the VM may belong to this host already, without the job's mark.
    func recover(_ name: String, job: String, orPromoted: Bool = false) async -> Recovered {
        func found() -> MachineEntry? {
            if let entry = moving(name, job) { return entry.isGone ? nil : entry }
            guard orPromoted, let entry = entries[name], entry.record.job == nil, entry.record.phase == .resident else {
                return nil
            }
            return entry.isGone ? nil : entry
        }
        guard found() != nil else { return .gone }
        try? await reconnect(name)
        guard let entry = found() else { return .gone }
        return entry.machine.map(Recovered.found) ?? .unresponsive
    }

    /// The job is over, and what is left of the VM stays here.
    func release(_ name: String, job: String) async {
        guard moving(name, job) != nil else { return }
        do { try await change(name) { $0.job = nil } } catch {
            logger.error("registry: \(error)", metadata: ["job": "\(job)", "vm": "\(name)"])
        }
    }

    /// As ``promote(_:)``.
    func promote(_ name: String, job: String) async {
        guard moving(name, job) != nil else { return }
        do {
            try await change(name) { record in
                record.phase = .resident
                record.job = nil
                record.note = nil
            }
        } catch { logger.error("registry: \(error)", metadata: ["job": "\(job)", "vm": "\(name)"]) }
    }

    /// As ``departed(_:to:)``.
    func departed(_ name: String, job: String, to host: String) async {
        logger.info("VM departed", metadata: ["vm": "\(name)", "host": "\(host)"])
        await remove(name, job: job)
    }

    /// As ``discard(_:)``.
    func discard(_ name: String, job: String) async { await remove(name, job: job) }

    private func remove(_ name: String, job: String) async {
        guard let entry = moving(name, job) else { return }
        await end(entry)
        guard entries[name]?.process === entry.process else { return }
        await forget(name)
    }

    /// Nil when the name belongs to another VM by now.
    private func moving(_ name: String, _ job: String) -> MachineEntry? {
        entries[name].flatMap { $0.record.job == job ? $0 : nil }
    }

    private func isCurrent(_ machine: Machine) -> Bool { entries[machine.name]?.process === machine.process }

    private func remove(_ machine: Machine) async {
        guard let entry = entries[machine.name], isCurrent(machine) else { return }
        await end(entry)
        guard isCurrent(machine) else { return }
        await forget(machine.name)
    }
}
