public import ApusAPI
import Foundation
import GRDB

/// One side's record of a migration, as its session last wrote it. The commit point is such a row.
///
/// Written before anything that follows from it. Most rows have to survive the agent, not the host: when the host goes
/// down its QEMU goes with it. Not so what tells that the destination may hold the only copy, `releasing`, or must not run
/// it, `aborted`: a row lost with the power would make the next agent say the contrary.
public struct SessionRow: Sendable, Equatable {
    public enum Role: String, Sendable { case source, destination }
    public var job: String
    public var role: Role
    public var vm: String
    /// Where the other agent can be dialled.
    public var peer: String
    /// `SourceRecord` or `DestinationRecord` as JSON.
    public var record: String

    public init(job: String, role: Role, vm: String, peer: String, record: String) {
        self.job = job
        self.role = role
        self.vm = vm
        self.peer = peer
        self.record = record
    }

    static func encode<Record: Encodable>(_ record: Record) throws -> String {
        String(decoding: try JSONEncoder().encode(record), as: UTF8.self)
    }

    func decode<Record: Decodable>(_ type: Record.Type = Record.self) throws(Problem) -> Record {
        do { return try JSONDecoder().decode(Record.self, from: Data(record.utf8)) } catch {
            throw Problem("store-corrupt", "The record of job \(job) cannot be read: \(error).")
        }
    }
}

extension Store {
    /// - Parameter durable: on disk when this returns, not only in the kernel's hands.
    public func save(_ row: SessionRow, durable: Bool = false) async throws(Problem) {
        try await write(durable: durable) { database in
            try database.execute(
                sql: """
                    INSERT INTO sessions (job, role, vm, peer, record) VALUES (?, ?, ?, ?, ?)
                    ON CONFLICT (job) DO UPDATE SET record = excluded.record, peer = excluded.peer
                    """, arguments: [row.job, row.role.rawValue, row.vm, row.peer, row.record])
        }
    }

    public func sessions() async throws(Problem) -> [SessionRow] {
        try await read { database in
            try Row.fetchAll(database, sql: "SELECT job, role, vm, peer, record FROM sessions").compactMap(Self.row)
        }
    }

    public func session(_ job: String) async throws(Problem) -> SessionRow? {
        try await read { database in
            try Row.fetchOne(
                database, sql: "SELECT job, role, vm, peer, record FROM sessions WHERE job = ?", arguments: [job]
            ).flatMap(Self.row)
        }
    }

    private static func row(_ row: Row) -> SessionRow? {
        guard let role = SessionRow.Role(rawValue: row["role"]) else { return nil }
        return SessionRow(job: row["job"], role: role, vm: row["vm"], peer: row["peer"], record: row["record"])
    }
}
