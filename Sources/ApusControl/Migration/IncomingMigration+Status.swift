import ApusAPI
import ApusFlow
import ApusSystem
import Foundation
import Logging

/// What people see of an incoming job.
extension IncomingMigration {
    /// What is said again and again is noted once.
    func note(_ problem: SessionProblem) {
        let text = Problem(problem).description
        if !status.notes.contains(text) { status.notes.append(text) }
    }

    func publish() async {
        status.phase = JobPhase(session.phase)
        switch session.state {
        case .discarded, .lost: status.error = session.state.problem.map { Problem($0) }
        case .idle, .preparing, .receiving, .cutOff, .inDoubt, .deciding, .starting, .pulling, .recovering, .completed:
            break
        }
        if status.phase.isFinal && status.endedAt == nil {
            status.endedAt = Date()
            status.summary = summary()
            if status.phase == .completed { status.progress.fraction = 1 }
        }
        await services.board.publish(status)
    }

    private func summary() -> JobSummary {
        let sample = flow?.sample() ?? FlowSample()
        var summary = JobSummary()
        summary.totalMs = Instant.now().ms(since: started)
        summary.wireBytes = sample.wireBytes
        summary.installed = flow?.installed ?? [:]
        summary.destinationCPUS = counters.cpuS
        if case .completed(let report) = session.state, let pull = report.pull {
            summary.pull = PullSummary(pull)
            summary.wireBytes += pull.wireBytes
        }
        return summary
    }

    /// Tells the registry what the VM is to this host from now on.
    func reflect(_ stage: DestinationStage) async {
        guard let machine else {
            // Its monitor has not answered this agent yet.
            if case .completed = stage { await services.machines.promote(vm, job: job) }
            return
        }
        do {
            switch stage {
            case .prepared:
                try await services.machines.markInDoubt(
                    machine,
                    note: "Complete and paused; job \(job) waits for the verdict of the source agent at \(peer).")
            // The job keeps it until it is whole.
            case .committed where session.pulls, .pulling:
                try await services.machines.markArriving(
                    machine,
                    note: "It runs; job \(job) fetches the rest of its memory from the source agent at \(peer).")
            case .committed, .completed: try await services.machines.promote(machine)
            // It was this host's; what is left of it is its operator's.
            case .lost(mayHaveRun: true): await services.machines.release(vm, job: job)
            case .incoming, .discarded, .lost(mayHaveRun: false): break
            }
        } catch { logger.error("registry: \(error)", metadata: ["job": "\(job)"]) }
    }

    func observeQemu() async {
        if machine == nil {
            switch await services.machines.recover(vm, job: job, orPromoted: true) {
            case .gone: return post(.qemuObserved(.dead))
            case .unresponsive: return
            case .found(let found):
                machine = found
                watchMachine()
            }
        }
        if let machine, let seen = await QemuObservation.destination(machine) { post(.qemuObserved(seen)) }
    }
}
