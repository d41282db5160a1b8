import ApusAPI
import Foundation
import GRDB

// What is remembered of VMs and of forecasts, so that the next one is better. Bounded: nothing here may be missed.
extension Store {
    /// VMs remembered; those that were not moved for longest are forgotten.
    static let historiesKeptMax = 2_000
    static let forecastsKeptMax = 1_000

    /// nil: nothing is known of this VM.
    func history(of vm: String) async throws(Problem) -> VMHistory? {
        try await read { database in
            // A history that cannot be read is worth no more than none.
            try String.fetchOne(database, sql: "SELECT record FROM histories WHERE vm = ?", arguments: [vm])
                .flatMap { try? JSONDecoder().decode(VMHistory.self, from: Data($0.utf8)) }
        }
    }

    func save(_ history: VMHistory, of vm: String) async throws(Problem) {
        try await write { database in
            try database.execute(
                sql: """
                    INSERT INTO histories (vm, updated_at, record) VALUES (?, ?, ?)
                    ON CONFLICT (vm) DO UPDATE SET updated_at = excluded.updated_at, record = excluded.record
                    """, arguments: [vm, Date().timeIntervalSince1970, try Self.json(history)])
            try database.execute(
                sql: """
                    DELETE FROM histories WHERE vm IN
                        (SELECT vm FROM histories ORDER BY updated_at DESC LIMIT -1 OFFSET ?)
                    """, arguments: [Self.historiesKeptMax])
        }
    }

    func save(_ record: ForecastRecord) async throws(Problem) {
        try await write { database in
            try database.execute(
                sql: "INSERT OR REPLACE INTO forecasts (job, ended_at, record) VALUES (?, ?, ?)",
                arguments: [record.job, record.endedAt.timeIntervalSince1970, try Self.json(record)])
            try database.execute(
                sql: """
                    DELETE FROM forecasts WHERE job IN
                        (SELECT job FROM forecasts ORDER BY ended_at DESC LIMIT -1 OFFSET ?)
                    """, arguments: [Self.forecastsKeptMax])
        }
    }

    /// Newest first.
    func forecasts() async throws(Problem) -> [ForecastRecord] {
        try await read {
            try Self.decoded(String.fetchAll($0, sql: "SELECT record FROM forecasts ORDER BY ended_at DESC"))
        }
    }
}
