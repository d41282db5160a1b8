import ApusAPI
import ApusFlow
import ApusSystem
import Foundation

/// What people see of an outgoing job.
extension OutgoingMigration {
    /// Keeps what the destination reports for the summary.
    func note(_ message: SessionMessage) async {
        switch message {
        case .ready(let terms):
            await agree(on: terms)
            agree(onContent: terms)
        case .prepared(let report):
            marks.prepared = Instant.now()
            marks.loadMs = report.loadMs
            marks.fenceMs = report.fenceMs
            marks.installed = report.installed
        case .running(let report): note(report)
        case .heartbeat(let report):
            marks.destinationCPUS = report.cpuS
            // Its devices, or `cont`, may wait for a page.
            if let token = report.pullToken, [.switching, .committing, .inDoubt].contains(session.phase) {
                await connectService(token: token)
            }
        case .open, .refused, .commit, .abort, .verdictQuery, .failed, .aborted, .resume, .resumed, .cutOff,
            .sourceLost:
            break
        }
    }

    private func note(_ report: ResumeReport) {
        marks.running = marks.running ?? Instant.now()
        marks.resumeMs = marks.resumeMs ?? report.resumeMs
        guard let pull = report.pull else { return }
        marks.pull = pull
        status.progress.memoryRemainingBytes = pull.missing * 4096
    }

    func publish() async {
        status.phase = JobPhase(session.phase)
        switch session.state {
        case .kept, .lost: status.error = session.state.problem.map { Problem($0) }
        case .idle, .connecting, .opening, .transferring, .reconnecting, .switching, .orphaned, .releasing, .deciding,
            .undecidable,
            .committed, .serving, .aborting, .recovering, .completed:
            break
        }
        if status.phase.isFinal && status.endedAt == nil {
            status.endedAt = Date()
            status.summary = summary()
            noteReferences(transfer?.flow.sample() ?? monitor.sample)
            status.progress.elapsedMs = status.summary?.totalMs ?? 0
            if status.phase == .completed {
                status.progress.fraction = 1
                await remember()
            }
        }
        await services.board.publish(status)
    }
}
