import ApusAPI
import ApusFlow
import ApusSystem
import Foundation

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
}
