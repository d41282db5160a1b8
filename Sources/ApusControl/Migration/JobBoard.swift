import ApusAPI
import Foundation
import Logging

/// What is known of every job: the live ones in memory, all of them in the store; and who wants to hear of changes.
actor JobBoard {
    private let store: Store
    private let logger: Logger
    private var live: [String: JobStatus] = [:]
    /// Jobs with a phase that is to be stored soon.
    private var unsaved: Set<String> = []
    private var listeners: [String: [UUID: AsyncStream<JobStatus>.Continuation]] = [:]

    init(store: Store, logger: Logger) {
        self.store = store
        self.logger = logger
    }

    /// Publishes a job's state. The first and the last are stored before this returns; a new phase in between a moment
    /// later, for then the guest may stand still, and the store is to serve its session alone.
    func publish(_ status: JobStatus) async {
        let before = live[status.id]
        // A sample that was taken before the end and came after it.
        if let before, before.phase.isFinal { return }
        if before == nil, !status.phase.isFinal, (try? await store.job(status.id))?.phase.isFinal == true { return }
        live[status.id] = status
        for listener in (listeners[status.id] ?? [:]).values { listener.yield(status) }
        if before?.phase != status.phase {
            logger.info(
                "job \(status.phase.rawValue)",
                metadata: ["job": "\(status.id)", "vm": "\(status.vm)", "peer": "\(status.peer)"])
            if before == nil || status.phase.isFinal { await save(status) } else { saveLater(status.id) }
        }
        if status.phase.isFinal {
            // Only now: until it was stored, nobody else knew its end.
            live[status.id] = nil
            for listener in (listeners.removeValue(forKey: status.id) ?? [:]).values { listener.finish() }
        }
    }

    /// Longer than a pause should be.
    private static let laterBy: Duration = .milliseconds(200)

    private func saveLater(_ id: String) {
        guard unsaved.insert(id).inserted else { return }
        Task {
            try? await Task.sleep(for: Self.laterBy)
            unsaved.remove(id)
            // A job that has ended was stored with its end.
            if let status = live[id], !status.phase.isFinal { await save(status) }
        }
    }

    private func save(_ status: JobStatus) async {
        do { try await store.save(status) } catch { logger.error("job not stored: \(error)") }
    }

    func status(_ id: String) async throws -> JobStatus {
        if let status = live[id] { return status }
        if let status = try await store.job(id) { return status }
        throw Problem("job-unknown", "There is no job \(id).", advice: "`apus job list` shows all jobs.")
    }

    /// Newest first.
    func list() async -> [JobStatus] {
        let stored = (try? await store.jobs()) ?? []
        return stored.map { live[$0.id] ?? $0 }
    }

    /// The state now and every later one; ends after a final one. A slow listener misses samples, never the last.
    func updates(of id: String) async throws -> AsyncStream<JobStatus> {
        let now = try await status(id)
        let (stream, continuation) = AsyncStream.makeStream(of: JobStatus.self, bufferingPolicy: .bufferingNewest(8))
        continuation.yield(now)
        guard !now.phase.isFinal, live[id] != nil else {
            continuation.finish()
            return stream
        }
        let listener = UUID()
        listeners[id, default: [:]][listener] = continuation
        continuation.onTermination = { _ in Task { await self.forget(listener, of: id) } }
        return stream
    }

    private func forget(_ listener: UUID, of id: String) {
        listeners[id]?[listener] = nil
        if listeners[id]?.isEmpty == true { listeners[id] = nil }
    }
}
