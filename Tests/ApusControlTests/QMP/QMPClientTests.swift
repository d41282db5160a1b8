import ApusQMP
import Testing

@Suite("QMP client on a scripted monitor") struct QMPClientTests {
    @Test("greeting gives the version") func greeting() async throws {
        let fake = try await FakeMonitor([FakeMonitor.greeting, FakeMonitor.capable], thenHold: true)
        let client = try await QMPClient.connect(path: fake.path)
        #expect(
            client.version == QEMUVersion(major: 7, minor: 2, micro: 22, package: "Debian 1:7.2+dfsg-7+deb12u18+b3"))
        #expect(client.version < QEMUVersion(major: 10, minor: 0, micro: 0))
    }

    @Test("no socket: the kernel's reason") func noSocket() async {
        await #expect(throws: QMPError.connectFailed(path: "/nowhere/q.sock", reason: "No such file or directory")) {
            try await QMPClient.connect(path: "/nowhere/q.sock")
        }
    }

    @Test("a monitor that another client holds never greets") func busy() async throws {
        let fake = try await FakeMonitor([], thenHold: true)
        await #expect(throws: QMPError.timedOut(command: "greeting", ms: 100)) {
            try await QMPClient.connect(path: fake.path, timeout: .milliseconds(100))
        }
    }

    @Test("close in the middle of a reply fails every pending command and ends events") func closedMidReply()
        async throws
    {
        let fake = try await FakeMonitor([
            FakeMonitor.greeting, FakeMonitor.capable, .init(#"{"return": {"running": tr"#, afterCommands: 3),
        ])
        let client = try await QMPClient.connect(path: fake.path)
        let events = client.events()
        await withTaskGroup(of: QMPError?.self) { group in
            for _ in 0..<2 {
                group.addTask {
                    do { try await client.execute(.queryStatus) } catch { return error as? QMPError }
                    return nil
                }
            }
            for await error in group { #expect(error == .closed) }
        }
        for await _ in events { Issue.record("no event was sent") }
        await #expect(throws: QMPError.closed) { try await client.execute(.queryStatus) }
    }

    @Test("garbage breaks the connection") func garbage() async throws {
        let fake = try await FakeMonitor(
            [FakeMonitor.greeting, FakeMonitor.capable, .init("SSH-2.0-OpenSSH_9.2\r\n", afterCommands: 2)],
            thenHold: true)
        let client = try await QMPClient.connect(path: fake.path)
        let expected = QMPError.malformed(what: "message is not understood: SSH-2.0-OpenSSH_9.2")
        await #expect(throws: expected) { try await client.execute(.queryStatus) }
        #expect(client.ended == expected)
    }

    @Test("a line without end is refused at the limit") func giantLine() async throws {
        let fake = try await FakeMonitor(
            [
                FakeMonitor.greeting, FakeMonitor.capable,
                .init(String(repeating: "x", count: QMPLimits.messageBytesMax + 1), afterCommands: 2),
            ], thenHold: true)
        let client = try await QMPClient.connect(path: fake.path)
        await #expect(throws: QMPError.malformed(what: "a message exceeds 16777216 bytes")) {
            try await client.execute(.queryStatus)
        }
    }

    @Test("a slow reply times out; the next command works, the late reply is ignored") func slow() async throws {
        let fake = try await FakeMonitor(
            [
                FakeMonitor.greeting, FakeMonitor.capable,
                .init(
                    #"{"return": {"status": "running", "singlestep": false, "running": true}, "id": "2"}"# + "\r\n",
                    afterCommands: 2, delayMs: 300),
                .init(#"{"return": {"name": "t7"}, "id": "3"}"# + "\r\n", afterCommands: 3),
            ], thenHold: true)
        let client = try await QMPClient.connect(path: fake.path)
        await #expect(throws: QMPError.timedOut(command: "query-status", ms: 50)) {
            try await client.execute(.queryStatus, timeout: .milliseconds(50))
        }
        #expect(try await client.execute(.queryName).name == "t7")
    }

    @Test("replies find their command by id, in any order and any pieces") func outOfOrder() async throws {
        let fake = try await FakeMonitor(
            [
                FakeMonitor.greeting, FakeMonitor.capable,
                .init(
                    #"{"return": {"name": "t7"}, "id": "3"}"# + "\r\n" + #"{"return": {"status": "paus"#,
                    afterCommands: 3),
                .init(#"ed", "running": false}, "id": "2"}"# + "\r\n", delayMs: 20),
            ], thenHold: true)
        let client = try await QMPClient.connect(path: fake.path)
        let first = Task { try await client.execute(.queryStatus) }
        // The ids are given in the order of the calls: the second call must come second.
        while fake.commandCount < 2 { await Task.yield() }
        #expect(try await client.execute(.queryName).name == "t7")
        #expect(try await first.value.status == .paused)
    }

    @Test("refusal carries class and text") func refused() async throws {
        let fake = try await FakeMonitor(
            [
                FakeMonitor.greeting, FakeMonitor.capable,
                .init(
                    #"{"id": "2", "error": {"class": "GenericError", "desc": "Parameter 'uri' is missing"}}"# + "\r\n",
                    afterCommands: 2),
            ], thenHold: true)
        let client = try await QMPClient.connect(path: fake.path)
        await #expect(
            throws: QMPError.refused(
                command: "migrate", class: "GenericError", description: "Parameter 'uri' is missing")
        ) { try await client.execute(.migrate(uri: "")) }
    }

    @Test("cancellation ends the wait at once") func cancelled() async throws {
        let fake = try await FakeMonitor([FakeMonitor.greeting, FakeMonitor.capable], thenHold: true)
        let client = try await QMPClient.connect(path: fake.path)
        let task = Task { try await client.execute(.queryStatus, timeout: .seconds(60)) }
        task.cancel()
        await #expect(throws: CancellationError.self) { try await task.value }
    }

    @Test("a reply of another shape is malformed, the connection lives") func shape() async throws {
        let fake = try await FakeMonitor(
            [
                FakeMonitor.greeting, FakeMonitor.capable,
                .init(#"{"return": [], "id": "2"}"# + "\r\n", afterCommands: 2),
            ], thenHold: true)
        let client = try await QMPClient.connect(path: fake.path)
        await #expect(throws: QMPError.self) { try await client.execute(.queryStatus) }
        #expect(client.ended == nil)
    }

    @Test("every subscriber gets every event, in order; one that does not read loses the oldest") func events()
        async throws
    {
        let lines = [
            #"{"timestamp": {"seconds": 1795246200, "microseconds": 23}, "event": "MIGRATION", "data": {"status": "setup"}}"#,
            #"{"timestamp": {"seconds": 1795246200, "microseconds": 24}, "event": "MIGRATION_PASS", "data": {"pass": 1}}"#,
            #"{"timestamp": {"seconds": 1795246201, "microseconds": 25}, "event": "STOP"}"#,
            #"{"timestamp": {"seconds": 1795246201, "microseconds": 26}, "event": "SHUTDOWN", "#
                + #""data": {"guest": true, "reason": "guest-shutdown"}}"#,
            #"{"timestamp": {"seconds": 1795246201, "microseconds": 27}, "event": "NIC_RX_FILTER_CHANGED", "data": {"path": "/x"}}"#,
        ]
        let fake = try await FakeMonitor([
            FakeMonitor.greeting, FakeMonitor.capable,
            .init(lines.joined(separator: "\r\n") + "\r\n", afterCommands: 2),
        ])
        let client = try await QMPClient.connect(path: fake.path)
        let all = client.events()
        let slow = client.events(buffering: 2)
        await #expect(throws: QMPError.closed) { try await client.execute(.queryStatus) }
        var kinds: [QMPEvent.Kind] = []
        var times: [Int64] = []
        for await event in all {
            kinds.append(event.kind)
            times.append(event.qemuMicroseconds)
        }
        let last: [QMPEvent.Kind] = [
            .shutdown(guest: true, reason: "guest-shutdown"), .other(name: "NIC_RX_FILTER_CHANGED"),
        ]
        #expect(kinds == [.migration(.setup), .migrationPass(1), .stop] + last)
        #expect(times.first == 1_795_246_200_000_023)
        var late: [QMPEvent.Kind] = []
        for await event in slow { late.append(event.kind) }
        #expect(late == last)
        #expect(client.eventsDropped == 3)
    }
}
