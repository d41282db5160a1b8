public import ApusAPI
public import Logging

/// Moves VMs away and receives them.
public actor Migrations {
    private let machines: Machines
    private let store: Store
    private let config: AgentConfig
    private let logger: Logger

    public init(machines: Machines, store: Store, config: AgentConfig, logger: Logger) {
        self.machines = machines
        self.store = store
        self.config = config
        self.logger = logger
    }

    private static let missing = Problem("not-built", "Moving VMs is not built yet.")

    /// Starts to move a VM; returns once the job exists.
    public func start(_ request: MigrateRequest) async throws -> JobStatus { throw Self.missing }
    /// Newest first.
    public func list() async -> [JobStatus] { (try? await store.jobs()) ?? [] }
    public func status(_ id: String) async throws -> JobStatus {
        if let job = try await store.job(id) { return job }
        throw Problem("job-unknown", "There is no job \(id).")
    }
    public func abort(_ id: String) async throws -> JobStatus { throw Self.missing }
    public func resolve(_ id: String, commit: Bool) async throws -> JobStatus { throw Self.missing }
    /// The state now and every later one; ends after a final one.
    public func updates(of id: String) async throws -> AsyncStream<JobStatus> {
        let status = try await status(id)
        return AsyncStream { continuation in
            continuation.yield(status)
            continuation.finish()
        }
    }
    /// Receives VMs from other agents until cancelled.
    public func run() async throws {
        while !Task.isCancelled { try await Task.sleep(for: .seconds(3600)) }
    }
}
