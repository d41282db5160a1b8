public import ApusAPI

// What people ask of jobs that exist.

extension Migrations {
    /// Newest first.
    public func list() async -> [JobStatus] { await board.list() }
    public func status(_ id: String) async throws -> JobStatus { try await board.status(id) }
    /// The state now and every later one; ends after a final one.
    public func updates(of id: String) async throws -> AsyncStream<JobStatus> { try await board.updates(of: id) }

    /// Asks a job to stop; the VM stays on the source. Too late after the commit point: the job's notes say so.
    public func abort(_ id: String) async throws -> JobStatus {
        let status = try await board.status(id)
        guard !status.phase.isFinal else {
            throw Problem("job-over", "Job \(id) has ended already: \(status.phase.rawValue).")
        }
        outgoing[id]?.post(.userAborted)
        incoming[id]?.post(.userAborted)
        return status
    }

    /// Has a job of mode `hybrid` move its guest now, whatever of its memory has not travelled.
    public func moveNow(_ id: String) async throws -> JobStatus {
        let status = try await board.status(id)
        guard !status.phase.isFinal else {
            throw Problem("job-over", "Job \(id) has ended already: \(status.phase.rawValue).")
        }
        guard let migration = outgoing[id] else {
            throw Problem(
                "job-incoming", "Job \(id) brings \(status.vm) to this host; its source decides when it moves.",
                advice: "Ask the agent at \(status.peer).")
        }
        try await migration.moveNow()
        return status
    }

    /// The operator's verdict on a job in doubt whose other host is gone for good.
    public func resolve(_ id: String, commit: Bool) async throws -> JobStatus {
        let status = try await board.status(id)
        guard outgoing[id] != nil || incoming[id] != nil else {
            throw Problem("job-over", "Job \(id) is not in doubt: it has ended (\(status.phase.rawValue)).")
        }
        outgoing[id]?.post(.resolve(commit: commit))
        incoming[id]?.post(.resolve(commit: commit))
        return status
    }
}
