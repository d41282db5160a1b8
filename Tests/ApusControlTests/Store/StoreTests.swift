import ApusAPI
import ApusControl
import ApusSystem
import Foundation
import GRDB
import Testing

@Suite("Store") struct StoreTests {
    private let path = "/tmp/apus-store-\(UInt32.random(in: 0...UInt32.max)).db"

    private func clean() {
        for end in ["", "-wal", "-shm"] { try? FileManager.default.removeItem(atPath: path + end) }
    }

    static func definition(_ name: String) -> MachineDefinition {
        MachineDefinition(
            name: name, command: ["qemu-system-x86_64", "-m", "64"], machineType: "pc-q35-7.2", ramBytes: 64 << 20,
            vcpus: 1, qemuVersion: "7.2.22", origin: .run)
    }

    @Test("machines, jobs and decisions are there again") func again() async throws {
        defer { clean() }
        let record = MachineRecord(
            definition: Self.definition("web"), phase: .inDoubt, process: .init(pid: 7, startTicks: UInt64.max),
            qmpPath: "/q", runDirectory: "/r", job: "j1", note: "look")
        var job = JobStatus(
            id: "j1", direction: .outgoing, vm: "web", peer: "b", phase: .transferring,
            startedAt: Date(timeIntervalSince1970: 1000.5), maxDowntimeMs: 300)
        do {
            let store = try Store(path: path)
            try await store.save(record)
            try await store.save(job)
            job.phase = .failed
            job.error = Problem("peer-silent", "b said nothing.")
            job.endedAt = Date(timeIntervalSince1970: 1001)
            try await store.save(job)
        }
        let store = try Store(path: path)
        #expect(try await store.machines() == [record])
        #expect(try await store.jobs() == [job])
        #expect(try await store.job("j1") == job)
        #expect(try await store.job("j2") == nil)
        try await store.removeMachine("web")
        #expect(try await store.machines().isEmpty)
    }

    @Test("a session's last record stands") func sessions() async throws {
        defer { clean() }
        let store = try Store(path: path)
        var row = SessionRow(job: "j", role: .source, vm: "web", peer: "10.0.0.2:7421", record: "{}")
        #expect(try await store.session("j") == nil)
        try await store.save(row)
        row.record = "{\"stage\":\"committed\"}"
        try await store.save(row)
        #expect(try await store.session("j") == row)
        #expect(try await store.sessions() == [row])
    }

    @Test("a damaged file is told and kept") func corrupt() throws {
        defer { clean() }
        let garbage = Data((0..<8192).map { UInt8(truncatingIfNeeded: $0 &* 31) })
        try garbage.write(to: URL(filePath: path))
        #expect(#expect(throws: Problem.self) { try Store(path: path) }?.code == "store-corrupt")
        #expect(try Data(contentsOf: URL(filePath: path)) == garbage)
    }

    @Test("a newer file is refused") func newer() async throws {
        defer { clean() }
        _ = try Store(path: path)
        let queue = try DatabaseQueue(path: path)
        try await queue.write { try $0.execute(sql: "INSERT INTO grdb_migrations (identifier) VALUES ('99')") }
        try queue.close()
        #expect(#expect(throws: Problem.self) { try Store(path: path) }?.code == "store-newer")
    }

    @Test("no directory") func unusable() {
        #expect(#expect(throws: Problem.self) { try Store(path: "/nowhere/apus.db") }?.code == "store-unusable")
    }
}
