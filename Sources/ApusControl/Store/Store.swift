public import ApusAPI
import ApusSystem
import Foundation
import GRDB

/// The agent's memory across restarts: one SQLite file.
///
/// Everything is durable when the agent dies (WAL, `synchronous=NORMAL`); see ``SessionRow`` for what has to survive more.
public final class Store: Sendable {
    public let path: String
    private let database: DatabaseQueue

    /// Opens or creates the file.
    ///
    /// - Throws: `Problem` `store-corrupt`, `store-newer`, `store-unusable`. Nothing is deleted or repaired.
    public init(path: String) throws(Problem) {
        self.path = path
        // SQLite gives its other files the mode of this one.
        if !FileManager.default.fileExists(atPath: path) {
            _ = FileManager.default.createFile(atPath: path, contents: nil, attributes: [.posixPermissions: 0o600])
        }
        do {
            var configuration = Configuration()
            configuration.journalMode = .wal
            configuration.busyMode = .timeout(5)
            configuration.prepareDatabase { try $0.execute(sql: "PRAGMA synchronous = NORMAL") }
            database = try DatabaseQueue(path: path, configuration: configuration)
            let migrator = Self.migrator
            let (superseded, check) = try database.read { database in
                (
                    try migrator.hasBeenSuperseded(database),
                    try String.fetchOne(database, sql: "PRAGMA quick_check(1)") ?? "no answer"
                )
            }
            guard check == "ok" else { throw Self.corrupt(path, check) }
            guard !superseded else {
                throw Problem(
                    "store-newer", "The database \(path) was written by a newer Apus.",
                    advice: "Use that version, or give this one another --state directory.")
            }
            try migrator.migrate(database)
        } catch let problem as Problem {
            throw problem
        } catch let error as DatabaseError
            where error.resultCode == .SQLITE_NOTADB || error.resultCode == .SQLITE_CORRUPT
        {
            throw Self.corrupt(path, error.message ?? "not a database")
        } catch {
            throw Problem(
                "store-unusable", "The database \(path) cannot be opened: \(error).",
                advice: "Check that the state directory exists, is writable and has room.")
        }
    }

    private static func corrupt(_ path: String, _ text: String) -> Problem {
        Problem(
            "store-corrupt", "The database \(path) is damaged (\(text)).",
            advice:
                "Keep the file for inspection, move it away and start again: running VMs can be adopted by their QMP sockets."
        )
    }

    private static var migrator: DatabaseMigrator {
        var migrator = DatabaseMigrator()
        migrator.registerMigration("1") { database in
            try database.execute(
                sql: """
                    CREATE TABLE machines (
                        name TEXT PRIMARY KEY NOT NULL,
                        phase TEXT NOT NULL,
                        pid INTEGER NOT NULL,
                        job TEXT,
                        record TEXT NOT NULL
                    ) STRICT;
                    CREATE TABLE jobs (
                        id TEXT PRIMARY KEY NOT NULL,
                        direction TEXT NOT NULL,
                        vm TEXT NOT NULL,
                        peer TEXT NOT NULL,
                        phase TEXT NOT NULL,
                        started_at REAL NOT NULL,
                        ended_at REAL,
                        status TEXT NOT NULL
                    ) STRICT;
                    CREATE INDEX jobs_by_start ON jobs (started_at);
                    CREATE TABLE sessions (
                        job TEXT PRIMARY KEY NOT NULL,
                        role TEXT NOT NULL,
                        vm TEXT NOT NULL,
                        peer TEXT NOT NULL,
                        record TEXT NOT NULL
                    ) STRICT;
                    """)
        }
        migrator.registerMigration("history") { database in
            try database.execute(
                sql: """
                    CREATE TABLE histories (
                        vm TEXT PRIMARY KEY NOT NULL,
                        updated_at REAL NOT NULL,
                        record TEXT NOT NULL
                    ) STRICT;
                    CREATE TABLE forecasts (
                        job TEXT PRIMARY KEY NOT NULL,
                        ended_at REAL NOT NULL,
                        record TEXT NOT NULL
                    ) STRICT;
                    CREATE INDEX forecasts_by_end ON forecasts (ended_at);
                    """)
        }
        return migrator
    }

    // MARK: Machines

    public func save(_ record: MachineRecord) async throws(Problem) {
        try await write { database in
            try database.execute(
                sql: """
                    INSERT INTO machines (name, phase, pid, job, record) VALUES (?, ?, ?, ?, ?)
                    ON CONFLICT (name) DO UPDATE SET phase = excluded.phase, pid = excluded.pid, job = excluded.job,
                        record = excluded.record
                    """,
                arguments: [
                    record.name, record.phase.rawValue, record.process.pid, record.job, try Self.json(record),
                ])
        }
    }

    public func removeMachine(_ name: String) async throws(Problem) {
        try await write { try $0.execute(sql: "DELETE FROM machines WHERE name = ?", arguments: [name]) }
    }

    public func machines() async throws(Problem) -> [MachineRecord] {
        try await read { try Self.decoded(String.fetchAll($0, sql: "SELECT record FROM machines ORDER BY name")) }
    }

    // MARK: Jobs

    /// Jobs kept; older finished ones are forgotten.
    public static let jobsKeptMax = 10_000

    /// A job that has ended stays as it was stored then.
    public func save(_ job: JobStatus) async throws(Problem) {
        try await write { database in
            try database.execute(
                sql: """
                    INSERT INTO jobs (id, direction, vm, peer, phase, started_at, ended_at, status)
                    VALUES (?, ?, ?, ?, ?, ?, ?, ?)
                    ON CONFLICT (id) DO UPDATE SET phase = excluded.phase, ended_at = excluded.ended_at,
                        status = excluded.status
                    WHERE ended_at IS NULL
                    """,
                arguments: [
                    job.id, job.direction.rawValue, job.vm, job.peer, job.phase.rawValue,
                    job.startedAt.timeIntervalSince1970, job.endedAt?.timeIntervalSince1970, try Self.json(job),
                ])
            guard job.phase.isFinal else { return }
            try database.execute(
                sql: """
                    DELETE FROM jobs WHERE ended_at IS NOT NULL AND id IN
                        (SELECT id FROM jobs ORDER BY started_at DESC LIMIT -1 OFFSET ?)
                    """, arguments: [Self.jobsKeptMax])
        }
    }

    /// The latest `limit` jobs, newest first.
    public func jobs(limit: Int = 1000) async throws(Problem) -> [JobStatus] {
        try await read {
            try Self.decoded(
                String.fetchAll(
                    $0, sql: "SELECT status FROM jobs ORDER BY started_at DESC, id LIMIT ?", arguments: [limit]))
        }
    }

    public func job(_ id: String) async throws(Problem) -> JobStatus? {
        try await read {
            let found: [JobStatus] = try Self.decoded(
                String.fetchAll($0, sql: "SELECT status FROM jobs WHERE id = ?", arguments: [id]))
            return found.first
        }
    }

    func write(
        durable: Bool = false, _ body: @escaping @Sendable (Database) throws -> Void
    ) async throws(Problem) {
        do {
            try await database.writeWithoutTransaction { database in
                if durable { try database.execute(sql: "PRAGMA synchronous = FULL") }
                defer { if durable { try? database.execute(sql: "PRAGMA synchronous = NORMAL") } }
                try database.inTransaction(.immediate) {
                    try body(database)
                    return .commit
                }
            }
        } catch { throw Self.failed(path, error) }
    }

    /// Everything written so far is on disk when this returns.
    public func sync() async throws(Problem) {
        do {
            try await database.writeWithoutTransaction { _ = try $0.checkpoint(.passive) }
        } catch { throw Self.failed(path, error) }
    }

    func read<T: Sendable>(_ body: @escaping @Sendable (Database) throws -> T) async throws(Problem) -> T {
        do { return try await database.read(body) } catch { throw Self.failed(path, error) }
    }

    private static func failed(_ path: String, _ error: any Error) -> Problem {
        (error as? Problem) ?? Problem("store-unusable", "The database \(path) failed: \(error).")
    }

    static func json(_ value: some Encodable) throws -> String {
        String(decoding: try JSONEncoder().encode(value), as: UTF8.self)
    }

    static func decoded<T: Decodable>(_ texts: [String]) throws -> [T] {
        try texts.map { try JSONDecoder().decode(T.self, from: Data($0.utf8)) }
    }
}
