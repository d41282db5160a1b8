import ApusQMP
internal import Foundation

/// QEMU's own migration, in the forms that Apus is compared with.
public struct PlainQemu: Sendable {
    public enum Mode: String, Sendable, CaseIterable, Codable {
        case plain, xbzrle
        case autoConverge = "auto-converge"
        case multifdZstd = "multifd+zstd"
        case postcopy
        case postcopyPreempt = "postcopy+preempt"

        var isPostcopy: Bool { self == .postcopy || self == .postcopyPreempt }
    }

    public let program: String
    public let mode: Mode
    /// Appears in results: `qemu7.2 plain`.
    public let label: String
    /// nil: a sixteenth of the guest's memory, which is what line hashes take.
    public var xbzrleCacheMiB: Int?
    /// As for Apus's gate, so that nobody wins by a longer pause.
    public var downtimeLimitMs: UInt64 = 300
    public var timeoutS: Double = 150

    public init(program: String, version: String, mode: Mode) {
        self.program = program
        self.mode = mode
        label = "qemu\(version) \(mode.rawValue)"
    }

    /// QEMU takes powers of two only; the largest one that is not above what was chosen.
    func xbzrleCacheBytes(of workload: Workload) -> UInt64 {
        let bytes = xbzrleCacheMiB.map { UInt64($0) << 20 } ?? UInt64(workload.memoryKiB) * 1024 / 16
        return bytes == 0 ? 0 : 1 << (63 - bytes.leadingZeroBitCount)
    }

    /// Boots the guest at the source, moves it, waits until it has checked all its memory once at the destination.
    public func migrate(
        _ workload: Workload, over pair: HostPair, in lab: Lab, image: GuestImage, accelerator: Accelerator
    )
        async throws -> Outcome
    {
        let source = try await Side.start("source", self, workload, pair.source, lab, image, accelerator)
        try await source.settle()
        let began = ContinuousClock.now
        let destination = try await Side.start(
            "destination", self, workload, pair.destination, lab, image, accelerator, incoming: true)
        for side in [source, destination] { try await prepare(side.qmp, for: workload) }
        let port = try await destination.listen(address: pair.destination.address)

        var outcome = Outcome(peer: label, workload: workload.name, rate: pair.rate)
        let meter = try await Meter.start(pair: pair, source: source.process.pid, destination: destination.process.pid)
        let events = source.qmp.events()
        let started = ContinuousClock.now
        try await source.qmp.execute(.migrate(uri: "tcp:\(pair.destination.address):\(port)"))
        let (ended, round1) = try await finish(
            events, source, WireProbe(pid: source.process.pid, device: pair.source.device))
        outcome.totalMs = (ended - began).milliseconds
        outcome.prepareMs = (started - began).milliseconds
        try await meter.stop(into: &outcome, round1: round1)
        let info = try await source.qmp.execute(.queryMigrate)
        outcome.reportedDowntimeMs = info.downtimeMs.map(Double.init)
        outcome.rounds = info.ram.map { Int($0.dirtySyncCount) }
        if mode.isPostcopy { outcome.pageRequests = info.ram?.postcopyRequests }
        await destination.console.check(seconds: 60)
        outcome.take(
            source: source.console.trace, destination: destination.console.trace, asked: began, moving: started,
            ended: ended)
        for side in [destination, source] { await side.stop() }
        return outcome
    }

    private func prepare(_ qmp: QMPClient, for workload: Workload) async throws {
        var capabilities = ["events": true]
        var parameters = MigrateParameters(downtimeLimitMs: downtimeLimitMs, maxBandwidth: 0)
        switch mode {
        case .plain: break
        case .autoConverge: capabilities["auto-converge"] = true
        case .xbzrle:
            capabilities["xbzrle"] = true
            parameters.xbzrleCacheSize = xbzrleCacheBytes(of: workload)
        case .multifdZstd:
            capabilities["multifd"] = true
            parameters.multifdChannels = 2
            parameters.multifdCompression = "zstd"
        case .postcopy, .postcopyPreempt:
            capabilities["postcopy-ram"] = true
            capabilities["postcopy-preempt"] = mode == .postcopyPreempt
            // With more it would come to its end before the rest is asked for.
            parameters.downtimeLimitMs = 1
        }
        try await qmp.execute(.migrateSetCapabilities(capabilities))
        try await qmp.execute(.migrateSetParameters(parameters))
    }

    /// Follows the source to its end; post-copy begins when the first pass over all memory is done.
    ///
    /// - Returns: when the source said `completed`, and what it had put on the wire when its first pass was done.
    private func finish(
        _ events: AsyncStream<QMPEvent>, _ source: Side, _ wire: WireProbe
    ) async throws -> (ended: Moment, round1: UInt64?) {
        let label = label, mode = mode, qmp = source.qmp, timeoutS = timeoutS
        return try await withThrowingTaskGroup(of: (ended: Moment, round1: UInt64?).self) { group in
            group.addTask {
                var round1: UInt64?
                var follows = !mode.isPostcopy
                for await event in events {
                    switch event.kind {
                    case .migration(.completed):
                        if follows { return (event.arrived, round1) }
                        throw LabError.migrationFailed(peer: label, reason: "it ended before post-copy began")
                    case .migration(.postcopyActive): follows = true
                    case .migration(.failed), .migration(.cancelled):
                        let info = try await qmp.execute(.queryMigrate)
                        throw LabError.migrationFailed(peer: label, reason: info.errorDescription ?? "no reason given")
                    case .migrationPass(2):
                        round1 = wire.handedOver()
                        // Refused when the guest is already being switched without it.
                        if mode.isPostcopy { _ = try? await qmp.execute(.migrateStartPostcopy) }
                    case .stop, .resume, .shutdown, .reset, .migration, .migrationPass, .other: continue
                    }
                }
                throw LabError.migrationFailed(
                    peer: label, reason: "the source QEMU is gone: \(source.process.logEnd())")
            }
            group.addTask {
                try await ContinuousClock().sleep(for: .seconds(timeoutS))
                throw LabError.migrationFailed(peer: label, reason: "not done after \(timeoutS) s")
            }
            defer { group.cancelAll() }
            guard let end = try await group.next() else { throw LabError.notEnough(what: "events") }
            return end
        }
    }
}

/// One QEMU that the laboratory runs itself.
struct Side: Sendable {
    let process: LabProcess
    let qmp: QMPClient
    let console: Console

    static func start(
        _ role: String, _ peer: PlainQemu, _ workload: Workload, _ host: Host, _ lab: Lab, _ image: GuestImage,
        _ accelerator: Accelerator, incoming: Bool = false
    ) async throws -> Side {
        try workload.disk?.make()
        let run = try lab.makeFolder(role)
        var words = [peer.program] + workload.arguments(run: run, image: image, accelerator: accelerator)
        words += ["-qmp", "unix:\(run)/qmp.sock,server=on,wait=off"]
        if incoming { words += ["-incoming", "defer"] }
        let process = try await lab.start(role, host.command(words))
        let qmp = try await wait(for: "QMP of the \(role)", seconds: 20) {
            try process.mustRun()
            return try? await QMPClient.connect(path: "\(run)/qmp.sock")
        }
        let console = try await Console.connect(path: "\(run)/console.sock")
        return Side(process: process, qmp: qmp, console: console)
    }

    /// The guest has filled its region, checked it once, and run on for a while at its own pace.
    func settle() async throws {
        try await console.verdicts(1, seconds: 90)
        try await ContinuousClock().sleep(for: Outcome.settling)
    }

    func listen(address: String) async throws -> UInt64 {
        try await qmp.execute(.migrateIncoming(uri: "tcp:\(address):0"))
        let info = try await qmp.execute(.queryMigrate)
        guard let port = info.socketAddresses?.first?["port"]?.string.flatMap(UInt64.init) else {
            throw LabError.migrationFailed(peer: "qemu", reason: "the destination does not say its port")
        }
        return port
    }

    func stop() async {
        await console.close()
        _ = try? await qmp.execute(.quit, timeout: .seconds(1))
        await qmp.close()
        await process.stop()
    }
}
