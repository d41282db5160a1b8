import ApusAPI
import ApusSystem
import Foundation
public import Logging
import ServiceLifecycle
import UnixSignals

/// The daemon: one for each state directory. VMs outlive it.
public struct Agent: Sendable {
    private let config: AgentConfig
    private let logger: Logger

    /// Time running jobs get to be undone, and clients to be answered, after the signal to stop.
    static let stopPatience: Duration = .seconds(30)

    public init(config: AgentConfig, logger: Logger) {
        self.config = config
        self.logger = logger
    }

    /// Runs until SIGTERM or SIGINT; outgoing jobs are then aborted, VMs run on.
    ///
    /// - Throws: `Problem` `agent-running`, `directory-unusable`, `listen-insecure`, those of `Store`.
    public func run() async throws {
        try config.validate()
        let locks = try prepare()
        defer { withExtendedLifetime(locks) {} }
        let link = try ListenAddress(config.link.listen)
        try link.check(insecure: config.link.insecure, purpose: "migration link", logger: logger)

        let store = try Store(path: config.databasePath)
        let machines = Machines(config: config, store: store, logger: logger)
        let found = try await machines.restore()
        Task { await machines.warmUp() }
        let migrations = Migrations(machines: machines, store: store, config: config, logger: logger)
        let server = APIServer(machines: machines, migrations: migrations, info: info(), config: config, logger: logger)
        logger.notice(
            "agent started",
            metadata: [
                "version": "\(ApusVersion.current)", "state": "\(config.stateDirectory)",
                "link": "\(config.link.listen)", "vms": "\(found.count)",
            ])
        // Stopped in reverse order: jobs first, while the API still tells their end.
        let services = try server.services() + [MigrationService(migrations: migrations, logger: logger)]
        var configuration = ServiceGroupConfiguration(
            services: services.map { .init(service: $0) }, gracefulShutdownSignals: [.sigterm, .sigint],
            logger: Logger(label: "services") { _ in SwiftLogNoOpLogHandler() })
        configuration.maximumGracefulShutdownDuration = Self.stopPatience
        configuration.maximumCancellationDuration = .seconds(5)
        try await ServiceGroup(configuration: configuration).run()
        try? FileManager.default.removeItem(atPath: config.apiSocket)
        logger.notice("agent stopped")
    }

    /// Directories of ours, and the locks that make them ours alone.
    private func prepare() throws(Problem) -> [FileLock] {
        var locks: [FileLock] = []
        for path in [config.stateDirectory, config.runDirectory] {
            do {
                try FileManager.default.createDirectory(
                    atPath: path, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
            } catch {
                throw Problem(
                    "directory-unusable", "The directory \(path) cannot be made: \(error.localizedDescription).",
                    advice: "Run the agent as root, or give it directories of its own with --state and --run.")
            }
            // One directory for both would be locked against ourselves.
            if path == config.runDirectory, !locks.isEmpty, config.runDirectory == config.stateDirectory { continue }
            do throws(SystemError) {
                locks.append(try FileLock(path: path + "/agent.lock"))
            } catch  where error.code == EWOULDBLOCK {
                throw Problem(
                    "agent-running", "Another agent uses \(path).",
                    advice:
                        "There is one agent for each state and run directory; stop that one, or name others with --state and --run."
                )
            } catch {
                throw Problem("directory-unusable", "\(path) cannot be used: \(error.reason).")
            }
        }
        return locks
    }

    private func info() -> AgentInfo {
        AgentInfo(
            version: ApusVersion.current, hostName: ProcessInfo.processInfo.hostName,
            pid: ProcessInfo.processInfo.processIdentifier, startedAt: Date(), link: config.link.listen,
            insecure: config.link.insecure, stateDirectory: config.stateDirectory, runDirectory: config.runDirectory,
            hosts: config.hosts)
    }
}

/// Receives VMs until the agent stops, and then takes back what is on its way out.
private struct MigrationService: Service {
    let migrations: Migrations
    let logger: Logger

    func run() async throws {
        try await withThrowingTaskGroup(of: Void.self) { group in
            group.addTask { try await migrations.run() }
            group.addTask {
                try await gracefulShutdown()
                await abortAll()
            }
            // Either the listener broke (its error goes on), or the agent stops.
            defer { group.cancelAll() }
            try await group.next()
        }
    }

    private func abortAll() async {
        await withTaskGroup(of: Void.self) { group in
            for job in await migrations.list() where !job.phase.isFinal && job.direction == .outgoing {
                group.addTask { await abort(job) }
            }
        }
    }

    private func abort(_ job: JobStatus) async {
        do {
            logger.notice("aborting a job to stop", metadata: ["job": "\(job.id)", "vm": "\(job.vm)"])
            _ = try await migrations.abort(job.id)
            // Final, or beyond the point of no return: both are recorded and taken up by the next start.
            for await status in try await migrations.updates(of: job.id)
            where status.phase.isFinal || status.phase == .inDoubt { return }
        } catch {
            logger.warning("job not aborted", metadata: ["job": "\(job.id)", "problem": "\(error)"])
        }
    }
}
