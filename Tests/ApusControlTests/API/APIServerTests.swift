import ApusAPI
import ApusControl
import Foundation
import Logging
import ServiceLifecycle
import Testing

@testable import apus

extension Bench {
    func server() -> APIServer {
        let logger = Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }
        let migrations = Migrations(machines: machines, store: store, config: config, logger: logger)
        return APIServer(
            machines: machines, migrations: migrations, info: Samples.agent, config: config, logger: logger)
    }

    /// Serves the API while `body` runs.
    func serving<T: Sendable>(_ body: @Sendable @escaping (AgentClient) async throws -> T) async throws -> T {
        let services = try server().services()
        return try await withThrowingTaskGroup(of: T?.self) { group in
            for service in services {
                group.addTask {
                    try await service.run()
                    return nil
                }
            }
            while !FileManager.default.fileExists(atPath: config.apiSocket) {
                try await Task.sleep(for: .milliseconds(5))
            }
            let client = AgentClient(socket: config.apiSocket)
            let result: Result<T, any Error>
            do { result = .success(try await body(client)) } catch { result = .failure(error) }
            await client.shutdown()
            group.cancelAll()
            return try result.get()
        }
    }
}

@Suite("API over its socket") struct APIServerTests {
    @Test("agent, lists, problems with their status") func basics() async throws {
        let bench = try Bench()
        try await bench.serving { (client: AgentClient) async throws -> Void in
            #expect(try await client.get("/v1/agent", as: AgentInfo.self) == Samples.agent)
            #expect(try await client.get("/v1/vms", as: [MachineSummary].self).isEmpty)
            #expect(try await client.get("/v1/migrations", as: [JobStatus].self).isEmpty)
            let unknown = await #expect(throws: Problem.self) {
                try await client.get("/v1/vms/nope", as: MachineSummary.self)
            }
            #expect(unknown?.code == "vm-unknown")
            let route = await #expect(throws: Problem.self) { try await client.get("/v2", as: AgentInfo.self) }
            #expect(route?.code == "route-unknown")
            let shape = await #expect(throws: Problem.self) {
                try await client.post("/v1/vms", ["name": "web"], as: MachineSummary.self)
            }
            #expect(
                shape?.code == "request-malformed"
                    && shape?.message == "The request is not a RunRequest: command is missing.")
            let command = [String](repeating: "x", count: 400_000)
            let large = await #expect(throws: Problem.self) {
                try await client.post("/v1/vms", RunRequest(name: "web", command: command), as: MachineSummary.self)
            }
            #expect(large?.code == "request-too-large")
            let name = await #expect(throws: Problem.self) {
                try await client.post("/v1/vms", RunRequest(name: "a/b", command: ["qemu"]), as: MachineSummary.self)
            }
            #expect(name?.code == "name-invalid")
        }
        let mode =
            try FileManager.default.attributesOfItem(atPath: bench.config.databasePath)[.posixPermissions] as? Int
        #expect(mode == 0o600)
        await bench.end()
    }

    @Test("the state of a finished job comes as one event, and the stream ends") func events() async throws {
        let bench = try Bench()
        let job = Samples.job(.completed)
        try await bench.store.save(job)
        try await bench.serving { (client: AgentClient) async throws -> Void in
            var seen: [JobStatus] = []
            for try await status in try await client.events(job: "j1") { seen.append(status) }
            #expect(seen == [job])
            await #expect(throws: Problem.self) { try await client.events(job: "j2") }
        }
        await bench.end()
    }

    @Test("run, show, stop a real VM", .enabled(if: !RealQemu.launchers.isEmpty)) func machine() async throws {
        let bench = try Bench()
        try await bench.serving { (client: AgentClient) async throws -> Void in
            let request = RunRequest(
                name: "web",
                command: [
                    RealQemu.launchers[0], "-accel", "tcg", "-m", "98312K", "-nodefaults", "-display", "none", "-S",
                ])
            let machine = try await client.post("/v1/vms", request, as: MachineSummary.self)
            #expect(machine.state == .paused)
            #expect(try await client.get("/v1/vms/web", as: MachineSummary.self) == machine)
            // Paused: the power button would not be heard, QEMU is told to quit.
            #expect(try await client.delete("/v1/vms/web", as: MachineSummary.self).state == .stopped)
        }
        await bench.end()
    }

    @Test("no agent") func unreachable() async throws {
        let client = AgentClient(socket: "/nowhere/agent.sock")
        await #expect(throws: AgentUnreachable.self) { try await client.get("/v1/agent", as: AgentInfo.self) }
        await client.shutdown()
    }

    @Test(
        "addresses",
        arguments: [
            ("127.0.0.1:7421", "127.0.0.1", 7421, true), ("[::1]:1", "::1", 1, true),
            ("localhost:80", "localhost", 80, true),
            ("0.0.0.0:7421", "0.0.0.0", 7421, false), ("127.evil.example:1", "127.evil.example", 1, false),
            ("b", "b", 9, false),
            ("10.0.0.1", "10.0.0.1", 9, false), ("fe80::1", "fe80::1", 9, false), ("[fe80::1]", "fe80::1", 9, false),
        ])
    func addresses(text: String, host: String, port: Int, loopback: Bool) throws {
        let address = try ListenAddress(text, defaultPort: 9)
        #expect(address.host == host && address.port == port && address.isLoopback == loopback)
    }

    @Test("no addresses", arguments: ["", ":1", "a:", "a:70000", "a:b", "[::1]x:1", "[]:1"])
    func noAddresses(text: String) {
        #expect(throws: Problem.self) { try ListenAddress(text) }
    }

    @Test("beyond loopback only when told") func insecure() throws {
        let bench = try Bench()
        var config = bench.config
        config.api.listen = "0.0.0.0:0"
        let logger = Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }
        let migrations = Migrations(machines: bench.machines, store: bench.store, config: config, logger: logger)
        func services() throws -> Int {
            try APIServer(
                machines: bench.machines, migrations: migrations, info: Samples.agent, config: config, logger: logger
            ).services().count
        }
        #expect(#expect(throws: Problem.self) { try services() }?.code == "listen-insecure")
        config.link.insecure = true
        #expect(try services() == 2)
        try FileManager.default.removeItem(atPath: config.stateDirectory)
    }
}
