import ApusAPI
import ApusControl
import ApusQMP
import ApusSystem
import Foundation
import Logging
import Testing

/// An agent's state and run directories, and the registry on them; nothing stays behind.
final class Bench: Sendable {
    let config: AgentConfig
    let store: Store
    let machines: Machines

    init(reopening other: Bench? = nil) throws {
        var config = AgentConfig()
        let root = other.map { $0.config.stateDirectory } ?? "/tmp/apus-b-\(UInt32.random(in: 0...UInt32.max))"
        config.stateDirectory = root
        config.runDirectory = root + "/run"
        try FileManager.default.createDirectory(atPath: config.runDirectory, withIntermediateDirectories: true)
        self.config = config
        store = try Store(path: config.databasePath)
        machines = Machines(
            config: config, store: store, logger: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() })
    }

    var filesLeft: [String] {
        let vms = (try? FileManager.default.contentsOfDirectory(atPath: config.runDirectory + "/vms")) ?? []
        let others = ((try? FileManager.default.contentsOfDirectory(atPath: config.runDirectory)) ?? []).filter {
            $0 != "vms"
        }
        return vms + others
    }

    func end() async {
        for machine in await machines.list() { _ = try? await machines.stop(machine.name, force: true) }
        try? FileManager.default.removeItem(atPath: config.stateDirectory)
    }
}

@Suite("Machines on real QEMU", .serialized, .enabled(if: !RealQemu.launchers.isEmpty)) struct MachinesRealTests {
    private func command(_ launcher: String, _ more: [String] = []) -> [String] {
        [launcher, "-accel", "tcg", "-M", "q35", "-m", "98312K", "-nodefaults", "-display", "none"] + more
    }
    private func problem(_ body: () async throws -> Void) async -> Problem? {
        do { try await body() } catch { return error as? Problem }
        return nil
    }

    @Test("run, list, stop", arguments: RealQemu.launchers) func run(launcher: String) async throws {
        let bench = try Bench()
        let summary = try await bench.machines.run(.init(name: "web", command: command(launcher, ["-smp", "2"])))
        #expect(summary.state == .running && summary.memoryBytes == 98312 << 10 && summary.vcpus == 2)
        #expect(summary.machineType?.hasPrefix("pc-q35-") == true && summary.origin == .run)
        #expect(
            await problem { _ = try await bench.machines.run(.init(name: "web", command: command(launcher))) }?.code
                == "vm-exists")
        #expect(await bench.machines.list() == [summary])
        let machine = try #require(await bench.machines.machine("web"))
        // QEMU's RAM is a shared file that can be mapped by its descriptor.
        let memory = try await MachineMemory.locate(
            blocks: [("pc.ram", 98312 << 10), ("pc.bios", 256 << 10)], in: machine)
        guard case .mapped(let path, 0) = memory["pc.ram"] else { throw Problem("test", "\(memory)") }
        #expect(FileManager.default.isReadableFile(atPath: path))
        #expect(memory["pc.bios"] == .stream)
        // An empty machine has no guest that could hear the power button.
        #expect(try await bench.machines.stop("web", force: true).state == .stopped)
        #expect(await machine.exited() == .code(0))
        #expect(await bench.machines.list().isEmpty && bench.filesLeft.isEmpty)
        #expect(try await bench.store.machines().isEmpty)
        await bench.end()
    }

    @Test("what cannot start says why and leaves nothing") func failures() async throws {
        let bench = try Bench()
        let qemu = "/usr/bin/qemu-system-x86_64"
        let cases: [([String], String, String)] = [
            (["/nowhere/qemu-system-x86_64", "-m", "64"], "qemu-missing", "/nowhere/qemu-system-x86_64"),
            ([qemu, "-M", "q35"], "memory-unknown", "how much memory"),
            ([qemu, "-M", "pc-q35-99.0", "-m", "64"], "machine-type-missing", "pc-q35-99.0"),
            (command(qemu, ["-drive", "file=/nowhere/disk.img"]), "qemu-start-failed", "/nowhere/disk.img"),
            (command(qemu, ["-device", "warp-drive"]), "qemu-start-failed", "warp-drive"),
            (command(qemu, ["-daemonize"]), "daemonize-refused", "-daemonize"),
            (["/bin/true", "-m", "64"], "qemu-unusable", "/bin/true"),
        ]
        for (command, code, text) in cases {
            let found = await problem { _ = try await bench.machines.run(.init(name: "web", command: command)) }
            #expect(found?.code == code)
            #expect(found?.message.contains(text) == true, "\(found?.message ?? "no problem")")
            #expect(bench.filesLeft.isEmpty, "\(bench.filesLeft)")
        }
        await bench.end()
    }

    @Test("a QEMU that dies is seen; its name is free again") func death() async throws {
        let bench = try Bench()
        _ = try await bench.machines.run(.init(name: "web", command: command(RealQemu.launchers[0])))
        let machine = try #require(await bench.machines.machine("web"))
        try machine.signal(SIGKILL)
        #expect(await machine.exited() == .signal(SIGKILL))
        while try await bench.machines.show("web").note == nil { try await Task.sleep(for: .milliseconds(5)) }
        let summary = try await bench.machines.show("web")
        #expect(summary.state == .stopped && summary.note == "QEMU was killed by signal 9." && summary.pid == nil)
        _ = try await bench.machines.run(.init(name: "web", command: command(RealQemu.launchers[0])))
        #expect(await problem { _ = try await bench.machines.show("other") }?.code == "vm-unknown")
        await bench.end()
    }

    @Test("a running QEMU is adopted; RAM of a plain one is found", arguments: RealQemu.launchers)
    func adopt(launcher: String) async throws {
        let bench = try Bench()
        let qemu = try RealQemu(launcher, ["-m", "100", "-name", "old"])
        try await qemu.connect().close()
        let summary = try await bench.machines.adopt(.init(qmpPath: qemu.qmpPath))
        #expect(summary.name == "old" && summary.origin == .adopted && summary.state == .running)
        #expect(summary.pid == qemu.process.processIdentifier)
        #expect(!summary.command.contains("-qmp") && summary.command.contains("-nodefaults"))
        #expect(await problem { _ = try await bench.machines.adopt(.init(qmpPath: qemu.qmpPath)) }?.code == "qmp-busy")
        let machine = try #require(await bench.machines.machine("old"))
        let memory = try await MachineMemory.locate(blocks: [("pc.ram", 100 << 20)], in: machine)
        guard case .process(machine.pid, _) = memory["pc.ram"] else { throw Problem("test", "\(memory)") }
        #expect(
            await problem { _ = try await bench.machines.adopt(.init(qmpPath: "/nowhere/q")) }?.code
                == "qmp-unreachable")
        await bench.end()
        #expect(!qemu.process.isRunning)
    }

    @Test("a restarted agent finds its VMs, and forgets the dead") func restart() async throws {
        let first = try Bench()
        for name in ["a", "b"] {
            _ = try await first.machines.run(.init(name: name, command: command(RealQemu.launchers[0])))
        }
        let a = try #require(await first.machines.machine("a"))
        let b = try #require(await first.machines.machine("b"))
        _ = try await first.machines.checkOut("a", job: "j1")
        // As if the agent died: its connections close, its QEMUs stay.
        await a.qmp.close()
        await b.qmp.close()
        try b.signal(SIGKILL)
        _ = await b.exited()

        let second = try Bench(reopening: first)
        let records = try await second.machines.restore()
        #expect(records.map(\.name) == ["a"] && records[0].job == "j1")
        let summary = try await second.machines.show("a")
        #expect(summary.state == .running && summary.pid == a.pid && summary.job == "j1")
        #expect(second.filesLeft == ["a"])
        let again = try #require(await second.machines.machine("a"))
        try await second.machines.giveBack(again)
        await second.end()
        #expect(a.exit != nil)
    }

    @Test("a whole move between two registries", arguments: RealQemu.launchers) func move(launcher: String) async throws
    {
        let here = try Bench()
        let there = try Bench()
        _ = try await here.machines.run(
            .init(name: "web", command: command(launcher, ["-serial", "file:{run}/tty.log"])))
        let source = try await here.machines.checkOut("web", job: "j1")
        #expect(
            await problem { _ = try await here.machines.checkOut("web", job: "j2") }?.message.contains("j1") == true)
        #expect(await problem { _ = try await here.machines.stop("web", force: true) }?.code == "vm-busy")

        let destination = try await there.machines.launchIncoming(source.definition, job: "j1")
        #expect(
            await problem { _ = try await there.machines.launchIncoming(source.definition, job: "j2") }?.code
                == "vm-exists")
        #expect(try await there.machines.show("web").state == .incoming)
        let uri = "unix:\(destination.runDirectory)/migrate.sock"
        try await destination.qmp.execute(.migrateIncoming(uri: uri))
        try await source.qmp.execute(.migrateSetCapabilities(["events": true]))
        let events = source.qmp.events()
        try await source.qmp.execute(.migrate(uri: uri))
        for await event in events { if case .migration(let status) = event.kind, status.isFinal { break } }
        try await there.machines.markInDoubt(destination, note: "nobody told")
        #expect(try await there.machines.show("web").state == .inDoubt)
        try await there.machines.promote(destination)
        try await destination.qmp.execute(.cont)
        await here.machines.departed(source, to: "there")
        #expect(source.exit != nil)
        let summary = try await there.machines.show("web")
        #expect(
            summary.state == .running && summary.origin == .migrated
                && summary.machineType == source.definition.machineType)
        #expect(await here.machines.list().isEmpty && here.filesLeft.isEmpty)
        await here.end()
        await there.end()
        #expect(destination.exit != nil)
    }

    @Test("what a destination lacks is told before or by QEMU; discard leaves nothing") func refusals() async throws {
        let bench = try Bench()
        var definition = StoreTests.definition("web")
        definition.command = command(RealQemu.launchers[0])
        definition.ramBytes = 98312 << 10
        func launch(_ change: (inout MachineDefinition) -> Void) async -> Problem? {
            var other = definition
            change(&other)
            return await problem { _ = try await bench.machines.launchIncoming(other, job: "j") }
        }
        #expect(await launch { $0.ramBytes = 1 << 50 }?.code == "memory-lacking")
        #expect(await launch { $0.machineType = "pc-q35-99.0" }?.code == "machine-type-missing")
        #expect(await launch { $0.command[0] = "/nowhere/qemu-system-x86_64" }?.code == "qemu-missing")
        #expect(await launch { $0.command += ["-hda", "/nowhere/d.img"] }?.message.contains("/nowhere/d.img") == true)
        #expect(bench.filesLeft.isEmpty)
        let machine = try await bench.machines.launchIncoming(definition, job: "j")
        await bench.machines.discard(machine)
        #expect(machine.exit != nil && bench.filesLeft.isEmpty)
        #expect(try await bench.store.machines().isEmpty)
        await bench.end()
    }
}
