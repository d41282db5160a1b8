import ApusAPI
import ApusSystem
import Foundation
import Logging

// What an agent that died in the middle of jobs has left: its successor takes up the unfinished ones and tidies up after
// those whose last record was written, but not everything that follows from it.

extension Migrations {
    /// Before any peer is heard.
    ///
    /// - Throws: `Problem` of the store.
    func restore() async throws {
        for row in try await store.sessions() {
            let peer = Endpoint(row.peer, defaultPort: UInt16(AgentConfig.linkPort))
            switch row.role {
            case .source: try await restoreOutgoing(row, peer)
            case .destination: try await restoreIncoming(row, peer)
            }
        }
        for record in await machines.records() {
            if let job = record.job { try await tidy(record, job) }
        }
        for status in try await store.jobs() where !status.phase.isFinal { try await close(status) }
    }

    private func restoreOutgoing(_ row: SessionRow, _ peer: Endpoint?) async throws {
        let record: SourceRecord = try row.decode()
        guard !SourceSession(restoring: record).phase.isFinal else { return }
        let migration = OutgoingMigration(
            services, restoring: record, machine: await machine(row), peer: peer ?? Self.nowhere,
            status: await lastStatus(row, .outgoing))
        outgoing[row.job] = migration
        Task {
            await migration.run(first: .restarted)
            self.ended(row.job)
        }
    }

    private func restoreIncoming(_ row: SessionRow, _ peer: Endpoint?) async throws {
        let record: DestinationRecord = try row.decode()
        guard !DestinationSession(restoring: record).phase.isFinal else { return }
        let migration = IncomingMigration(
            services, restoring: record, machine: await machine(row), peer: peer ?? Self.nowhere,
            status: await lastStatus(row, .incoming))
        incoming[row.job] = migration
        Task {
            await migration.run(first: .restarted)
            self.ended(row.job)
        }
    }

    /// Only this agent wrote the addresses, so that each can be read; a job of a damaged one can still be resolved.
    private static let nowhere = Endpoint.tcp(host: "127.0.0.1", port: UInt16(AgentConfig.linkPort))

    private func machine(_ row: SessionRow) async -> Machine? {
        guard
            case .found(let machine) = await machines.recover(
                row.vm, job: row.job, orPromoted: row.role == .destination)
        else { return nil }
        return machine
    }

    private func lastStatus(_ row: SessionRow, _ direction: JobDirection) async -> JobStatus {
        if let status = try? await store.job(row.job) { return status }
        return JobStatus(
            id: row.job, direction: direction, vm: row.vm, peer: row.peer, phase: .inDoubt, startedAt: Date(),
            maxDowntimeMs: 300)
    }

    /// A VM marked with a job that has ended, or never began: the mark goes, and with it what was not to stay.
    private func tidy(_ record: MachineRecord, _ job: String) async throws {
        guard outgoing[job] == nil, incoming[job] == nil else { return }
        await OutgoingTransfer.takeBackTracker(runDirectory: record.runDirectory)
        guard let row = try await store.session(job), row.role == .destination else {
            if record.phase == .resident { return await machines.release(record.name, job: job) }
            return await machines.discard(record.name, job: job)
        }
        let last: DestinationRecord = try row.decode()
        switch last.stage {
        case .completed, .committed: await machines.promote(record.name, job: job)
        case .lost(mayHaveRun: true): await machines.release(record.name, job: job)
        // Not final: it has a runtime.
        case .pulling: break
        case .discarded, .lost(mayHaveRun: false), .incoming, .prepared: await machines.discard(record.name, job: job)
        }
    }

    /// A job that people see as running although nobody works on it.
    private func close(_ status: JobStatus) async throws {
        guard outgoing[status.id] == nil, incoming[status.id] == nil else { return }
        var status = status
        // Nothing was recorded: it was never more than a wish.
        (status.phase, status.error) = (.failed, Problem(SessionFailure.agentRestarted.problem))
        if let row = try await store.session(status.id) {
            switch row.role {
            case .source:
                let session = SourceSession(restoring: try row.decode())
                (status.phase, status.error) = (JobPhase(session.phase), session.state.problem.map { Problem($0) })
            case .destination:
                let session = DestinationSession(restoring: try row.decode())
                (status.phase, status.error) = (JobPhase(session.phase), session.state.problem.map { Problem($0) })
            }
        }
        status.endedAt = Date()
        await board.publish(status)
    }
}
