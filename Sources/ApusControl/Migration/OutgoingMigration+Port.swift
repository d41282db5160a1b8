import ApusAPI
import ApusFlow
import ApusQMP
import ApusSystem
import Foundation
import Logging

// How an outgoing job reaches the VM's memory.
extension OutgoingMigration {
    /// Decides how the VM's memory is reached here, and takes hold of it; the destination has its say in `ready`.
    ///
    /// - Returns: what to offer; nil: the stream port.
    /// - Throws: `Problem` `port-not-possible` when the operator wants the direct port and it cannot be had.
    func choosePort(_ machine: Machine) async throws -> DirectAccess? {
        if request.port == .stream { return nil }
        do {
            await OutgoingTransfer.takeBackTracker(runDirectory: machine.runDirectory)
            let candidate = try await DirectAccess.examine(machine)
            if request.rebaseMemory ?? false { try await rebaseMemory(machine, candidate) }
            let access = try DirectAccess(candidate)
            let drain = drain(machine)
            memory = try await offPool("apus-attach") {
                try access.attach(
                    pid: machine.pid, journal: DirectAccess.journalPath(runDirectory: machine.runDirectory),
                    drain: drain)
            }
            if access.usesDirectIO {
                status.notes.append(
                    "\(machine.name) has a disk with cache.direct=on: every round stops it until its disk requests are done."
                )
            }
            for block in access.blocks where block.isRebased {
                status.notes.append(
                    "RAM block \(block.name) of \(machine.name) is in a file that it was given while it ran.")
            }
            return access
        } catch {
            guard request.port != .direct else { throw Self.portNotPossible(machine.name, "\(error)") }
            status.notes.append("\(machine.name) goes by the stream port. \(error)")
            dropChoice("It needs the direct port.")
            return nil
        }
    }

    /// Before the job's first record: nobody listens yet to QEMU's STOP.
    private func rebaseMemory(_ machine: Machine, _ candidate: DirectAccess.Candidate) async throws {
        guard let rebasing = try MemoryRebasing(machine, candidate.infos) else { return }
        let (abortAsked, started, timeoutS) = (abortAsked, started, request.timeoutS ?? .infinity)
        do {
            let pauses = try await offPool("apus-rebase") {
                try rebasing.run {
                    !abortAsked.read { $0 } && Instant.now().ms(since: started) < timeoutS * 1000
                }
            }
            let longest = String(format: "%.1f", pauses.max() ?? 0)
            status.notes.append(
                "\(machine.name)'s private RAM was moved into a file: \(pauses.count) pauses, the longest \(longest) ms."
            )
        } catch { throw DirectAccess.Obstacle("Its private RAM could not be moved into a file: \(error).") }
    }

    /// Called from the flow's threads.
    private nonisolated func drain(_ machine: Machine) -> DirectMemory.Drain {
        let (stops, rehearsal) = (drainStops, services.rehearsal)
        return DirectMemory.Drain(
            stop: {
                try blocking {
                    guard await machine.runState() == .running else { return false }
                    stops.update { $0 += 1 }
                    try await machine.qmp.execute(.stop)
                    return true
                }
            },
            resume: {
                try blocking {
                    await rehearsal?.hold("source", before: "resumeDrained")
                    try await machine.qmp.execute(.cont)
                }
            })
    }

    private static func portNotPossible(_ name: String, _ why: String) -> Problem {
        Problem(
            "port-not-possible", "\(name) cannot go by the direct port. \(why)",
            advice: "Leave --port out: the stream port moves it.")
    }

    func agree(on terms: TransferTerms) async {
        if terms.pulls != true || !terms.direct {
            dropChoice(terms.reason ?? "The destination's agent does not know it.")
        }
        if pull.isDemanded, terms.pulls != true, let mode = request.mode {
            let why = terms.reason ?? "The destination's agent does not know it."
            return post(.localFailed(SessionProblem(Self.pullNotPossible(request.vm, mode, why))))
        }
        if pull == .ifNeeded, terms.pulls != true {
            cannotHandOver(terms.reason ?? "The other agent does not know it.")
        }
        if memory != nil {
            if terms.direct { return }
            await letGoOfMemory()
            let why = terms.reason ?? "The destination's agent does not know it."
            if request.port == .direct {
                return post(.localFailed(SessionProblem(Self.portNotPossible(request.vm, why))))
            }
            status.notes.append("\(request.vm) goes by the stream port. \(why)")
        }
        if pull != .nothing { agreeOnFetchable(terms) }
        if pull != .ifNeeded { monitor.cannotHandOver() }
    }

    /// Takes everything out of QEMU again. What cannot be taken out now is left to the next agent, by its journal.
    func letGoOfMemory() async {
        guard let memory else { return }
        self.memory = nil
        let brake = transfer?.brake
        do {
            try await offPool("apus-detach") {
                // Only one may hold QEMU's threads.
                brake?.join()
                try memory.detach()
            }
        } catch {
            logger.warning("detach: \(error)", metadata: ["job": "\(job)"])
        }
    }
}

extension Monitor<Int> {
    /// Counts down; false at zero.
    func takeOne() -> Bool {
        update { count in
            guard count > 0 else { return false }
            count -= 1
            return true
        }
    }
}
