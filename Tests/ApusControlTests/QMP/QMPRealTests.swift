import ApusQMP
import Foundation
import Testing

@Suite("QMP client on real QEMU", .serialized, .enabled(if: !RealQemu.launchers.isEmpty)) struct QMPRealTests {
    @Test("every query decodes", arguments: RealQemu.launchers) func queries(launcher: String) async throws {
        let qemu = try RealQemu(launcher, ["-m", "100", "-smp", "2", "-name", "t", "-S"])
        let client = try await qemu.connect()
        #expect(client.peerPID == qemu.process.processIdentifier)
        #expect(try await client.execute(.queryVersion) == client.version)
        #expect(try await client.execute(.queryStatus).status == .prelaunch)
        #expect(try await client.execute(.queryName).name == "t")
        #expect(try await client.execute(.queryMigrate).status == .none)
        #expect(try await client.execute(.queryMigrateCapabilities).knows("x-ignore-shared"))
        #expect(try await client.execute(.queryMigrateParameters).downtimeLimitMs == 300)
        #expect(try await client.execute(.queryMemorySizeSummary).baseMemory == 100 << 20)
        #expect(try await client.execute(.queryMemoryDevices) == .array([]))
        #expect(try await client.execute(.queryCPUsFast).count == 2)
        #expect(try await client.execute(.queryBlock).isEmpty)
        #expect(try await client.execute(.queryDirtyRate).status == "unstarted")
        let type = try await client.execute(.qomGet(path: "/machine", property: "type")).string
        #expect(type?.hasPrefix("pc-q35-") == true && type?.hasSuffix("-machine") == true)
        let machines = try await client.execute(.queryMachines)
        #expect(machines.first { $0.alias == "q35" }?.defaultRAMID == "pc.ram")
        #expect(try await client.execute(.human("info ramblock")).contains("pc.ram"))
        await #expect(throws: QMPError.self) { try await client.execute(.any("no-such-command")) }
    }

    @Test("run, stop, quit with their events", arguments: RealQemu.launchers) func runStop(launcher: String)
        async throws
    {
        let qemu = try RealQemu(launcher, ["-m", "100", "-S"])
        let client = try await qemu.connect()
        let events = client.events()
        try await client.execute(.cont)
        try await client.execute(.stop)
        #expect(try await client.execute(.queryStatus).status == .paused)
        _ = try? await client.execute(.quit)
        await client.waitUntilClosed()
        var kinds: [QMPEvent.Kind] = []
        for await event in events { kinds.append(event.kind) }
        #expect(kinds.filter { $0 == .resume || $0 == .stop } == [.resume, .stop])
        #expect(kinds.last == .shutdown(guest: false, reason: "host-qmp-quit"))
        await #expect(throws: QMPError.closed) { try await client.execute(.queryStatus) }
    }

    @Test("a whole migration, with the pause before the switch", arguments: RealQemu.launchers)
    func migration(launcher: String) async throws {
        let source = try RealQemu(launcher, ["-m", "98312K"])
        let destination = try RealQemu(launcher, ["-m", "98312K"], incoming: true)
        let from = try await source.connect()
        let into = try await destination.connect()
        for client in [from, into] {
            try await client.execute(.migrateSetCapabilities(["events": true, "return-path": true]))
        }
        try await from.execute(.migrateSetCapabilities(["pause-before-switchover": true]))
        try await from.execute(.migrateSetParameters(.init(downtimeLimitMs: 500, maxBandwidth: 0)))
        let uri = "unix:\(destination.directory.path)/migrate.sock"
        try await into.execute(.migrateIncoming(uri: uri))
        let events = from.events()
        let arrivals = into.events()
        try await from.execute(.migrate(uri: uri))
        var seen: [QMPEvent.Kind] = []
        for await event in events {
            seen.append(event.kind)
            if event.kind == .migration(.preSwitchover) {
                #expect(try await from.execute(.queryMigrate).status == .preSwitchover)
                try await from.execute(.migrateContinue())
            }
            if case .migration(let status) = event.kind, status.isFinal { break }
        }
        #expect(seen.contains(.migrationPass(1)) && seen.contains(.stop))
        #expect(seen.last == .migration(.completed))
        let info = try await from.execute(.queryMigrate)
        #expect(info.status == .completed && info.downtimeMs != nil && (info.ram?.dirtySyncCount ?? 0) >= 2)
        #expect(try await from.execute(.queryStatus).status == .postMigrate)
        for await event in arrivals where event.kind == .migration(.completed) { break }
        #expect(try await into.execute(.queryStatus).running)
    }

    @Test("cancel leaves the guest running", arguments: RealQemu.launchers) func cancel(launcher: String) async throws {
        let qemu = try RealQemu(launcher)
        let client = try await qemu.connect()
        try await client.execute(.migrateSetCapabilities(["events": true]))
        try await client.execute(.migrateSetParameters(.init(maxBandwidth: 4096)))
        let events = client.events()
        try await client.execute(.migrate(uri: "exec:cat > /dev/null"))
        for await event in events {
            if event.kind == .migration(.active) { try await client.execute(.migrateCancel) }
            if event.kind == .migration(.cancelled) { break }
        }
        #expect(try await client.execute(.queryMigrate).status == .cancelled)
        #expect(try await client.execute(.queryStatus).running)
        await #expect(throws: QMPError.self) { try await client.execute(.migrateContinue()) }
    }
}
