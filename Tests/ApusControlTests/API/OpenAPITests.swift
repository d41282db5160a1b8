import ApusAPI
import ApusControl
import Foundation
import Testing
import Yams

/// The document is true: what it says exists, and what exists it says.
@Suite("OpenAPI document") struct OpenAPITests {
    private static var document: [String: Any] {
        var url = URL(filePath: #filePath)
        for _ in 0..<4 { url.deleteLastPathComponent() }
        url.append(path: "Docs/api/openapi.yaml")
        let text = (try? String(contentsOf: url, encoding: .utf8)) ?? ""
        return (try? Yams.load(yaml: text)) as? [String: Any] ?? [:]
    }
    private static var schemas: [String: [String: Any]] {
        ((document["components"] as? [String: Any])?["schemas"] as? [String: [String: Any]]) ?? [:]
    }

    @Test("every operation, both ways") func operations() async throws {
        let bench = try Bench()
        let paths = try #require(Self.document["paths"] as? [String: [String: Any]])
        let written = paths.flatMap { path, item in
            item.keys.filter { $0 != "parameters" }.map { "\($0.uppercased()) \(path)" }
        }
        #expect(written.sorted() == bench.server().operations.sorted())
        await bench.end()
    }

    private static let samples: [(String, any Encodable & Sendable)] = [
        ("Problem", Samples.problem), ("AgentInfo", Samples.agent), ("RunRequest", Samples.run),
        ("AdoptRequest", Samples.adopt), ("MachineSummary", Samples.machine), ("MigrateRequest", Samples.migrate),
        ("ResolveRequest", Samples.resolve), ("JobStatus", Samples.job(.completed)), ("JobProgress", Samples.progress),
        ("ChosenWay", ChosenWay(mode: .dsm, port: .direct, basis: .plan)),
        ("JobSummary", Samples.summary), ("DowntimePart", Samples.summary.downtimeParts[0]),
        ("FormCount", Samples.summary.forms[0]), ("LineSummary", Samples.lines), ("PullSummary", Samples.pull),
        ("PrefetchSummary", Samples.prefetch),
        ("PlanRequest", Samples.planRequest), ("PlanReport", Samples.plan), ("PlanOption", Samples.planOption),
        ("PlanRange", Samples.planOption.totalMs), ("AccuracyReport", Samples.accuracy),
        ("ForecastErrors", Samples.accuracy.atStart), ("ErrorSpread", Samples.accuracy.atStart?.totalMs),
        ("ForecastRecord", Samples.forecast), ("MigrationCost", Samples.forecast.actual),
        ("StoreReport", Samples.store),
        ("StoredImage", Samples.store.images[0]), ("IndexedDisk", Samples.store.disks[0]),
    ]

    @Test("every schema and every property, both ways") func properties() throws {
        #expect(Self.schemas.keys.sorted() == Self.samples.map(\.0).sorted())
        for (name, sample) in Self.samples {
            let data = try APICoding.encoder().encode(sample)
            let fields = try #require(try JSONSerialization.jsonObject(with: data) as? [String: Any])
            let schema = try #require(Self.schemas[name])
            let properties = try #require(schema["properties"] as? [String: Any])
            #expect(properties.keys.sorted() == fields.keys.sorted(), "\(name)")
        }
    }

    @Test("required is what cannot be nil") func required() throws {
        func fields(_ value: some Encodable) throws -> [String] {
            let object = try JSONSerialization.jsonObject(with: APICoding.encoder().encode(value)) as? [String: Any]
            return (object ?? [:]).keys.sorted()
        }
        let bare: [(String, [String])] = [
            ("Problem", try fields(Problem("a", "b"))), ("RunRequest", try fields(RunRequest(name: "a", command: []))),
            ("AdoptRequest", try fields(AdoptRequest(qmpPath: "/q"))),
            ("MachineSummary", try fields(MachineSummary(name: "a", state: .running, origin: .run, command: []))),
            ("MigrateRequest", try fields(MigrateRequest(vm: "a", host: "b"))),
            ("JobProgress", try fields(JobProgress())),
            ("JobSummary", try fields(JobSummary())), ("JobStatus", try fields(Samples.job(.preparing, full: false))),
        ]
        for (name, present) in bare {
            #expect((Self.schemas[name]?["required"] as? [String])?.sorted() == present, "\(name)")
        }
    }

    @Test("enumerations have the cases of the code") func enumerations() {
        func written(_ schema: String, _ property: String) -> [String]? {
            let properties = Self.schemas[schema]?["properties"] as? [String: [String: Any]]
            return properties?[property]?["enum"] as? [String]
        }
        #expect(written("MigrateRequest", "port") == MemoryPort.allCases.map(\.rawValue))
        #expect(written("MigrateRequest", "mode") == MigrationMode.allCases.map(\.rawValue))
        #expect(written("ForecastRecord", "basis") == ForecastRecord.Basis.allCases.map(\.rawValue))
        #expect(written("PlanOption", "ending") == PlanOption.Ending.allCases.map(\.rawValue))
        #expect(written("JobStatus", "phase") == JobPhase.allCases.map(\.rawValue))
        #expect(written("MachineSummary", "origin")?.allSatisfy { MachineOrigin(rawValue: $0) != nil } == true)
        #expect(written("MachineSummary", "state")?.allSatisfy { MachineState(rawValue: $0) != nil } == true)
        #expect(written("JobStatus", "direction")?.allSatisfy { JobDirection(rawValue: $0) != nil } == true)
    }

    @Test("dates keep their milliseconds") func dates() throws {
        let text = String(decoding: try APICoding.encoder().encode(Samples.agent), as: UTF8.self)
        #expect(text.contains("2026-11-21T07:30:00.125Z"))
        #expect(try APICoding.decoder().decode(AgentInfo.self, from: Data(text.utf8)) == Samples.agent)
        let whole = text.replacing(".125Z", with: "Z")
        #expect(
            try APICoding.decoder().decode(AgentInfo.self, from: Data(whole.utf8)).startedAt.timeIntervalSince1970
                == 1_795_246_200)
    }
}
