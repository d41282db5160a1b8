import ApusAPI
import ApusControl
import ApusMemory
import Foundation
import Logging
import Synchronization
import Testing

@testable import apus

@Suite("Configuration") struct ConfigTests {
    @Test("nothing is the defaults", arguments: ["", "# only a comment\n", "---\n", "{}"]) func defaults(text: String)
        throws
    {
        #expect(try ConfigFile.parse(text, name: "f") == AgentConfig())
        #expect(AgentConfig().apiSocket == "/run/apus/agent.sock")
    }

    @Test("every key") func full() throws {
        let config = try ConfigFile.parse(
            """
            stateDirectory: /s
            runDirectory: /r
            api: {socket: /x.sock, listen: "127.0.0.1:8080"}
            link: {listen: "10.0.0.1:7000", lanes: 4, insecure: true}
            migrate:
              {lineTableMiB: 64, holdHotPages: false, recordMs: 700, sendWhileRecording: false, prefetch: near,
               allow: [postcopy], patienceS: 5}
            content: {disks: false, indexMiB: 8, indexMBps: 70, storeMiB: 100, keepS: 60, keyFile: /k, domains: {web: shop}}
            ramDirectory: /ram
            hosts: {b: 10.0.0.2, c: "10.0.0.3:7500"}
            logFormat: json
            logLevel: debug
            """, name: "f")
        var wanted = AgentConfig()
        wanted.stateDirectory = "/s"
        wanted.runDirectory = "/r"
        wanted.api = .init(socket: "/x.sock", listen: "127.0.0.1:8080")
        wanted.link.listen = "10.0.0.1:7000"
        wanted.link.lanes = 4
        wanted.link.insecure = true
        wanted.migrate.lineTableMiB = 64
        wanted.content.disks = false
        wanted.content.indexMiB = 8
        wanted.content.indexMBps = 70
        wanted.content.storeMiB = 100
        wanted.content.keepS = 60
        wanted.content.keyFile = "/k"
        wanted.content.domains = ["web": "shop"]
        wanted.migrate.holdHotPages = false
        wanted.migrate.recordMs = 700
        wanted.migrate.sendWhileRecording = false
        wanted.migrate.prefetch = .near
        wanted.migrate.allow = [.postcopy]
        wanted.migrate.patienceS = 5
        wanted.ramDirectory = "/ram"
        wanted.hosts = ["b": "10.0.0.2", "c": "10.0.0.3:7500"]
        wanted.logFormat = .json
        wanted.logLevel = "debug"
        #expect(config == wanted)
        try config.validate()
        // What is written can be read again.
        #expect(try JSONDecoder().decode(AgentConfig.self, from: JSONEncoder().encode(wanted)) == wanted)
    }

    @Test(
        "mistakes name the key",
        arguments: [
            ("stateDir: /s", "config-key-unknown", "\"stateDir\""),
            ("link: {lane: 1}", "config-key-unknown", "\"link.lane\""),
            ("api: {tcp: 1}", "config-key-unknown", "\"api.tcp\""),
            ("migrate: {lineTable: 1}", "config-key-unknown", "\"migrate.lineTable\""),
            ("migrate: {lineTableMiB: 64M}", "config-invalid", "migrate.lineTableMiB"),
            ("migrate: {prefetch: all}", "config-invalid", "migrate.prefetch"),
            ("link: {lanes: many}", "config-invalid", "link.lanes"),
            ("logFormat: xml", "config-invalid", "logFormat"), ("a: [", "config-invalid", "f"),
        ])
    func mistakes(text: String, code: String, named: String) {
        let problem = #expect(throws: Problem.self) { try ConfigFile.parse(text, name: "f") }
        #expect(problem?.code == code)
        #expect(problem?.message.contains(named) == true, "\(problem?.message ?? "")")
    }

    @Test("values out of range") func ranges() throws {
        var lanes = AgentConfig()
        lanes.link.lanes = 17
        var relative = AgentConfig()
        relative.runDirectory = "run"
        var host = AgentConfig()
        host.hosts = ["b": "x:y"]
        var table = AgentConfig()
        table.migrate.lineTableMiB = 0
        var (index, speed, store, key) = (AgentConfig(), AgentConfig(), AgentConfig(), AgentConfig())
        index.content.indexMiB = 0
        speed.content.indexMBps = 0
        store.content.storeMiB = -1
        key.content.keyFile = "key"
        var (given, file) = (AgentConfig(), AgentConfig())
        given.migrate.prefetch = .given
        file.migrate.pushOrderFile = "/order"
        for config in [lanes, relative, host, table, index, speed, store, key, given, file] {
            #expect(throws: Problem.self) { try config.validate() }
        }
    }

    @Test("a cap of line hashes says what it can be", arguments: [0, -1, 1 << 20 + 1, Int.max]) func lineTable(
        mebibytes: Int
    ) {
        var config = AgentConfig()
        config.migrate.lineTableMiB = mebibytes
        let problem = #expect(throws: Problem.self) { try config.validate() }
        #expect(problem?.message == "migrate.lineTableMiB is \(mebibytes); it can be 1 to 1048576.")
        #expect(problem?.advice?.contains("--mode plain") == true)
    }

    @Test("JSON log lines") func logLines() throws {
        let lines = Mutex<[String]>([])
        let sink: @Sendable (String) -> Void = { line in lines.withLock { $0.append(line) } }
        var logger = Logger(label: "apus") { JSONLogHandler(label: $0, write: sink) }
        logger[metadataKey: "vm"] = "web"
        logger.notice("said \"hello\"\n", metadata: ["pid": "7"])
        logger.debug("not shown")
        let all = lines.withLock { $0 }
        #expect(all.count == 1 && all[0].hasSuffix("}\n") && all[0].count(where: { $0 == "\n" }) == 1)
        let object = try JSONSerialization.jsonObject(with: Data(all[0].utf8)) as? [String: Any]
        #expect(object?["message"] as? String == "said \"hello\"\n")
        #expect(object?["data"] as? [String: String] == ["vm": "web", "pid": "7"])
        #expect(object?["level"] as? String == "notice")
    }
}
