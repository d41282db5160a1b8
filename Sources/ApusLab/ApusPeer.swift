import ApusAPI
internal import Foundation

/// Two `apus agent`s, one on each host, used only through the `apus` command as a person would.
public struct ApusPeer: Sendable {
    /// How the agent gets at the VM's memory: `apus migrate --port`.
    public enum Port: String, Sendable, CaseIterable { case auto, stream, direct }
    /// What travels of a page: `apus migrate --mode`.
    public enum Mode: String, Sendable, CaseIterable { case plain, dsm, hybrid, postcopy }

    /// The `apus` program.
    public let program: String
    public var qemu: String
    /// Appears in results where Apus is measured with several QEMUs; nil: with the first.
    public var qemuVersion: String?
    /// nil: Apus decides.
    public var port: Port?
    /// nil: Apus decides.
    public var mode: Mode?
    /// The guest is an adopted one with private RAM, which is moved into a file first: `apus migrate --rebase-memory`.
    public var rebases = false
    /// TCP connections for pages, `link.lanes` of both agents; nil: their default.
    public var lanes: Int?
    /// `migrate.holdHotPages` of both agents.
    public var holdsHotPages = true
    /// `migrate.recordMs` of both agents; nil: their default.
    public var recordMs: Double?
    /// Nothing travels while it is recorded what the guest uses: `migrate.sendWhileRecording: false`.
    public var isFaithful = false
    /// `migrate.prefetch` of both agents; nil: their default.
    public var prefetch: Prefetch?
    public enum Prefetch: String, Sendable, CaseIterable { case sweep, near, recorded, trend, oracle }
    /// Pages are pushed in the order in which the guest will use them, as its twin has shown; see ``Twin``.
    var foreknows: Bool { prefetch == .oracle }
    /// `migrate.pushOrderFile` of both agents.
    var pushOrderFile: String?
    /// Pages may be referred to on shared disks, and in what the guest left behind: `content` of both agents.
    public var refers = false
    /// `content.domains` of both agents: trust domains of VMs, by name.
    public var domains: [String: String] = [:]
    /// `content.storeMiB` of both agents; nil: the default.
    public var storeMiB: Int?
    /// `migrate.lineTableMiB` of both agents; nil: no cap.
    public var lineTableMiB: Int?
    public var maxDowntimeMs = 300
    /// `--allow`; nil: as the agents are configured.
    public var allows: String?
    /// Asks `apus plan` first, and keeps what became of its forecast.
    public var foretells = false
    /// After it `apus migrate` gives up and says why.
    public var timeoutS: Double = 150
    /// How long the laboratory waits for the command itself.
    var patienceS: Double { timeoutS + 30 }
    /// The destination's migration port.
    static let port = 4600
    private static let vm = "prover"

    public init(program: String, qemu: String) {
        self.program = program
        self.qemu = qemu
    }

    /// Takes port and mode from a name: `apus`, `apus-PORT`, `apus-MODE`, `apus-MODE-PORT`; `rebase` as the port is the
    /// direct one of a VM that is re-backed. A port without a mode means plain pages, so that what `apus-direct` measures
    /// does not change with the default mode. Behind it, in this order:
    ///
    ///     sweep, near, recorded, trend     how pages are foreseen; with the first two nothing is recorded
    ///     oracle                           what will be used is known
    ///     faithful                         nothing travels while it is recorded what the guest uses
    ///     ref                              pages are referred to where they can be had elsewhere
    ///     nohold                           hot pages are not kept back
    ///
    /// - Returns: nil for another name.
    public static func named(_ name: String, program: String, qemu: String) -> ApusPeer? {
        var peer = ApusPeer(program: program, qemu: qemu)
        var words = name.split(separator: "-", omittingEmptySubsequences: false).map(String.init)
        guard words.removeFirst() == "apus" else { return nil }
        if let mode = words.first.flatMap(Mode.init(rawValue:)) {
            peer.mode = mode
            words.removeFirst()
        }
        peer.rebases = words.first == "rebase"
        if let port = peer.rebases ? .direct : words.first.flatMap(Port.init(rawValue:)) {
            peer.port = port
            peer.mode = peer.mode ?? .plain
            words.removeFirst()
        }
        if let prefetch = words.first.flatMap(Prefetch.init(rawValue:)) {
            peer.prefetch = prefetch
            if prefetch != .recorded && prefetch != .trend { peer.recordMs = 0 }
            words.removeFirst()
        }
        if words.first == "faithful" {
            peer.isFaithful = true
            words.removeFirst()
        }
        if words.first == "ref" {
            peer.refers = true
            words.removeFirst()
        }
        if words.first == "nohold" {
            peer.holdsHotPages = false
            words.removeFirst()
        }
        return words.isEmpty ? peer : nil
    }

    /// Appears in results: `apus-dsm-direct`, `apus 4 lanes`.
    public var label: String {
        var words = ["apus"]
        if let mode, mode != .plain || port == nil { words.append(mode.rawValue) }
        if let port { words.append(rebases ? "rebase" : port.rawValue) }
        if let prefetch { words.append(prefetch.rawValue) }
        if isFaithful { words.append("faithful") }
        if refers { words.append("ref") }
        if !holdsHotPages { words.append("nohold") }
        let qemu = qemuVersion.map { " on QEMU \($0)" } ?? ""
        return words.joined(separator: "-") + qemu + (lanes.map { " \($0) lane\($0 == 1 ? "" : "s")" } ?? "")
    }

    /// What `apus migrate` is told beside VM and host.
    var migrateOptions: [String] {
        var words = ["--max-downtime", "\(maxDowntimeMs)", "--timeout", "\(Int(timeoutS))"]
        if let allows { words += ["--allow", allows] }
        if let port { words += ["--port", port.rawValue] }
        if let mode { words += ["--mode", mode.rawValue] }
        if rebases { words.append("--rebase-memory") }
        return words
    }

    /// `link.reconnectS` of both agents; nil: the default.
    public var reconnectS: Double?

    /// `link.sourceLossS` of both agents; nil: the default.
    public var sourceLossS: Double?

    /// `ramDirectory` of both agents; nil: the default. One without room leaves guest RAM private to QEMU.
    public var ramDirectory: String?

    /// The agent's configuration file.
    var configuration: String {
        let link = [
            lanes.map { "  lanes: \($0)\n" }, reconnectS.map { "  reconnectS: \($0)\n" },
            sourceLossS.map { "  sourceLossS: \($0)\n" },
        ].compactMap(\.self)
        let migrate = [
            holdsHotPages ? nil : "  holdHotPages: false\n", lineTableMiB.map { "  lineTableMiB: \($0)\n" },
            prefetch.map { "  prefetch: \(foreknows ? "given" : $0.rawValue)\n" },
            pushOrderFile.map { "  pushOrderFile: \($0)\n" }, recordMs.map { "  recordMs: \($0)\n" },
            isFaithful ? "  sendWhileRecording: false\n" : nil,
        ].compactMap(\.self)
        // A store and an index are measured where they are asked for, and disturb nothing elsewhere.
        let domains = domains.map { "    \($0.key): \($0.value)\n" }.sorted()
        let content =
            refers
            ? [storeMiB.map { "  storeMiB: \($0)\n" }, domains.isEmpty ? nil : "  domains:\n" + domains.joined()]
                .compactMap(\.self)
            : ["  disks: false\n", "  storeMiB: 0\n"]
        let sections = [("link", link), ("migrate", migrate), ("content", content)].map {
            $1.isEmpty ? "" : "\($0):\n" + $1.joined()
        }
        return (ramDirectory.map { "ramDirectory: \($0)\n" } ?? "") + sections.joined()
    }

    /// `apus` beside this executable: `./dev` builds both into one folder.
    public static func findProgram() -> String {
        if let path = ProcessInfo.processInfo.environment["APUS_PROGRAM"] { return path }
        let own =
            (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")) ?? CommandLine.arguments[0]
        let beside = URL(fileURLWithPath: own).deletingLastPathComponent().appendingPathComponent("apus").path
        // Under `swift test` this executable is the test bundle or the toolchain's runner.
        return FileManager.default.isExecutableFile(atPath: beside) ? beside : ".build/release/apus"
    }

    /// Boots the guest through Apus, moves it, waits until it has checked all its memory once at the destination.
    ///
    /// - Parameter narrate: told what happens; the command's live progress then goes to this terminal.
    public func migrate(
        _ workload: Workload, over pair: HostPair, in lab: Lab, image: GuestImage, accelerator: Accelerator,
        narrate: ((String) -> Void)? = nil
    ) async throws -> Outcome {
        var (peer, workload) = (self, workload)
        if foreknows {
            workload.ram = .file
            peer.pushOrderFile = lab.path("push-order")
        }
        let monitor = lab.path("second.qmp")
        let source = try await Agent.start("a", peer, pair.source, lab, port: Self.port - 1)
        let destination = try await Agent.start("b", peer, pair.destination, lab, port: Self.port)
        narrate?("$ apus vm \(rebases ? "adopt" : "run") \(Self.vm) -- \(qemu) …")
        let here =
            rebases || foreknows
            ? try await source.adopt(
                workload, as: Self.vm, qemu: qemu, second: foreknows ? monitor : nil, image: image,
                accelerator: accelerator, in: lab)
            : try await source.run(workload, as: Self.vm, qemu: qemu, image: image, accelerator: accelerator)
        if refers { try await source.waitForIndexes() }
        try await ContinuousClock().sleep(for: Outcome.settling)

        // What the guest did until now is its speed before, and what comes was seen in its twin.
        let settled = ContinuousClock.now
        if let path = peer.pushOrderFile {
            let future = try await Twin.foresee(
                workload, monitor: monitor, qemu: qemu, image: image, accelerator: accelerator, in: lab)
            try future.pushOrder.write(toFile: path, atomically: true, encoding: .utf8)
        }
        if foretells { try await source.apus(["plan", Self.vm, destination.endpoint], seconds: 60) }

        var outcome = Outcome(peer: label, workload: workload.name, rate: pair.rate)
        let sourceQemu = try await source.qemuPID(of: Self.vm)
        let meter = try await Meter.start(pair: pair, source: sourceQemu, destination: nil)
        let agents = [source, destination].map { CPUTime.of(pid: $0.process.pid) }
        narrate?("$ apus migrate \(Self.vm) \(destination.endpoint) --verbose")
        let started = ContinuousClock.now
        // The destination's console is there as soon as its QEMU is, long before the guest runs in it.
        async let there = Console.connect(path: destination.consolePath(of: Self.vm), seconds: patienceS)
        let history = try await source.migrate(Self.vm, to: destination.endpoint, self, showing: narrate != nil)
        let ended = ContinuousClock.now
        let job = history.job
        let console = try await there
        outcome.totalMs = (ended - started).milliseconds
        outcome.prepareMs = (console.connected - started).milliseconds
        outcome.reportedDowntimeMs = job.summary?.downtimeMs
        outcome.downtimeParts = job.summary?.downtimeParts
        outcome.rounds = job.summary?.rounds
        outcome.bytesAfterRound1 = history.bytesAfterRound1
        outcome.pull = job.summary?.pull
        if foretells {
            let record = try Agent.decode(AccuracyReport.self, try await source.apus(["plan", "--accuracy", "--json"]))
            outcome.forecast = record.latest.first { $0.job == job.id }
        }
        try await meter.stop(into: &outcome)
        // The kernel's count of the whole agent; its own count of this job only if there is no other.
        outcome.agentCPUSource =
            CPUTime.of(pid: source.process.pid)?.process(since: agents[0]) ?? job.summary?.sourceCPUS
        outcome.agentCPUDestination =
            CPUTime.of(pid: destination.process.pid)?.process(since: agents[1]) ?? job.summary?.destinationCPUS
        outcome.qemuCPUDestination = try await destination.qemuPID(of: Self.vm).flatMap(CPUTime.of(pid:))?.besideGuest
        await console.check(seconds: 60)
        outcome.take(
            source: here.trace, destination: console.trace, settled: foreknows ? settled : nil,
            asked: started, moving: console.connected, ended: ended)
        for open in [here, console] { await open.close() }
        return outcome
    }
}
