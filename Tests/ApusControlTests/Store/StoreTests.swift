import ApusAPI
import ApusFlow
import ApusSystem
import Foundation
import GRDB
import Testing

@testable import ApusControl

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

    @Test("what a VM wrote, and what was foretold, is remembered") func histories() async throws {
        defer { clean() }
        var known = VMHistory()
        var seen = WorkingSetHistory()
        for spanMs in [50.0, 100, 200, 400] {
            seen.add(.init(endMs: spanMs, spanMs: spanMs, pages: 1000 * (1 - 1 / (1 + spanMs / 100))))
        }
        known.learn(seen, atHour: 7)
        known.learn(link: 117e6, to: "b")
        (known.dataPages, known.firstBytesPerPage) = (40_000, 4100)
        do { try await Store(path: path).save(known, of: "web") }
        let store = try Store(path: path)
        let again = try #require(try await store.history(of: "web"))
        #expect(again == known)
        #expect(try await store.history(of: "other") == nil)
        #expect(again.forecast(to: "c", lanes: 2, maxDowntimeMs: 300, slowsDown: true, atHour: 7) == nil)
        let quiet = try #require(again.forecast(to: "b", lanes: 2, maxDowntimeMs: 300, slowsDown: true, atHour: 7))
        #expect((1300...1600).contains(quiet.totalMs), "\(quiet)")
        // A busier hour is expected to be busy again.
        var busy = again
        busy.hours[8] = .init(pagesPerS: (busy.hours[7]?.pagesPerS ?? 0) * 5, looks: 1)
        let later = try #require(busy.forecast(to: "b", lanes: 2, maxDowntimeMs: 300, slowsDown: true, atHour: 8))
        #expect(later.wireBytes > quiet.wireBytes)
        try await store.save(Samples.forecast)
        try await store.save(Samples.forecast)
        #expect(try await store.forecasts() == [Samples.forecast])
    }

    @Test("errors are shares of what was") func errors() throws {
        func cost(_ value: Double) -> MigrationCost { .init(totalMs: value, wireBytes: 1, downtimeMs: value) }
        let pairs = [80, 90, 100, 110, 150].map { (foretold: cost($0), actual: cost(100)) }
        let errors = try #require(ForecastErrors(pairs))
        #expect(errors.migrations == 5 && abs(errors.totalMs.median - 0.1) < 1e-9)
        #expect(abs(errors.totalMs.p90 - 0.38) < 1e-9 && errors.wireBytes.p90 == 0)
        #expect(ForecastErrors([]) == nil)
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
