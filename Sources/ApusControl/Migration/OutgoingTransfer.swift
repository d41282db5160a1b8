import ApusAPI
import ApusFabric
import ApusFlow
import ApusQMP
import ApusSystem
import ApusWire
import Foundation

/// The moving part of an outgoing job: the source QEMU set up to migrate into our socket, and the flow that reads it.
final class OutgoingTransfer: Sendable {
    let flow: SourceFlow
    /// Of the guest's vCPUs; nil: they are not to be slowed down, or cannot be.
    let brake: Brake?
    private let port: Port
    private let machine: Machine
    private let patience = Monitor(Patience.notAsked)

    /// What QEMU has to do with the memory.
    private enum Port {
        /// Sends all of it. Once the gate is open what it sends may stay here, dropped: ``OutgoingTransfer/keepsRest``.
        case stream
        /// Sends nothing, and migrates only when the gate opens.
        case direct
        /// Sends what the agent owns and drops. It migrates from the beginning, for it must have sent it all once.
        case directBesideQemu

        init(_ memory: DirectMemory?) {
            self = memory.map { $0.qemuSendsPagesToo ? .directBesideQemu : .direct } ?? .stream
        }
    }
    var isDirect: Bool { port != .stream }
    private let keeps: Monitor<Bool>
    /// Stream port: pages stay here when the guest moves.
    var keepsRest: Bool { port == .stream && keeps.read { $0 } }

    /// With a QEMU that was let go on to its end.
    private enum Patience {
        case notAsked
        case waits(since: Instant)
        case over
    }

    /// QEMU stops by itself only when this little is left: the gate decides, not QEMU. With the direct port this makes it
    /// send its small blocks (ROMs) while the guest still runs.
    private static let closedDowntimeMs: UInt64 = 1
    /// What QEMU may take over the pages that are dropped, as long as it stops the guest soon.
    private static let droppedDowntimeMs: UInt64 = 10
    /// What of the pause QEMU may count on: it sees how fast its socket takes bytes, not what is still on its way.
    static let countedShare = 0.85
    /// A pass of QEMU over memory that stays here: some 1 GB/s.
    static let passBytesPerMs = 1e6
    /// As long as QEMU needs to notice twice.
    private static let patienceMs = 400.0
    /// Of a guest that stands still nearly all the time only this part may be left, and it is tried for so long.
    private static let slowedShare = 0.6
    private static let slowedPatienceMs = 3_000.0
    private static let acceptMs = 5_000

    /// What the operator had set, to be put back when the VM stays here. Kept in the VM's run directory, so that the
    /// successor of an agent that died can do it.
    private struct SavedSettings: Sendable, Codable {
        var capabilities: [String: Bool] = [:]
        var downtimeLimitMs: UInt64?
        var maxBandwidth: UInt64?

        static func path(_ machine: Machine) -> String { machine.runDirectory + "/migrate-settings.json" }

        static func read(_ machine: Machine) -> SavedSettings? {
            FileManager.default.contents(atPath: path(machine)).flatMap {
                try? JSONDecoder().decode(SavedSettings.self, from: $0)
            }
        }

        func write(_ machine: Machine) throws {
            try JSONEncoder().encode(self).write(to: URL(fileURLWithPath: Self.path(machine)), options: .atomic)
        }
    }

    /// - Throws: `Problem`; QEMU's settings are then as they were.
    init(_ migration: isolated OutgoingMigration, _ machine: Machine, _ link: ControlLink) async throws {
        self.machine = machine
        let memory = migration.memory
        port = Port(memory)
        keeps = Monitor(migration.pull.isDemanded)
        do {
            try await Self.prepare(machine, direct: memory != nil)
            brake = await migration.ladder.slowsDown ? Self.brake(of: machine) : nil
            flow = try await Self.start(migration, machine, link, memory, brake)
            if port == .directBesideQemu {
                do { try flow.connect(try await Self.connection(of: machine)) } catch {
                    flow.stop()
                    throw error
                }
            }
        } catch {
            await Self.restoreSettings(machine)
            throw error
        }
    }

    private static func start(
        _ migration: isolated OutgoingMigration, _ machine: Machine, _ link: ControlLink, _ memory: DirectMemory?,
        _ brake: Brake?
    ) async throws -> SourceFlow {
        let (peer, token, count) = (migration.peer, migration.token, migration.laneCount)
        let lanes = try await offPool("apus-dial") { try dialLanes(peer, token, count) }
        var options = FlowOptions(for: migration.request, migration.services.config.migrate)
        options.pull = migration.pull
        if let fetchable = migration.fetchable {
            (options.fetchable, options.recorded) = (fetchable.layout, fetchable.recorded)
        }
        options.references = migration.content.references
        options.ladder = migration.ladder
        options.brake = brake
        options.fixedDowntimeMs = migration.prior.fixedDowntimeMs ?? SwitchGate.fixedMs
        options.againBytesPerPage = migration.prior.againBytesPerPage
        options.history = migration.prior.prior(atHour: VMHistory.hour(of: Date()))
        if options.pull != .nothing { options.server = try await migration.openService() }
        let port: SourcePort =
            if let memory { .direct(memory) } else { .stream(try await connection(of: machine)) }
        // For --verify, and for what was on its way when a connection was lost.
        let reach = memory == nil ? await MachineMemory.Locator(machine) : nil
        return try SourceFlow(
            port, control: link, lanes: lanes, options: options, memory: { reach?.port(of: $0) ?? .stream },
            report: { migration.flowReports($0) })
    }

    /// Makes QEMU migrate into a socket of ours.
    private static func connection(of machine: Machine) async throws -> Socket {
        let path = machine.runDirectory + "/migrate.sock"
        let listener = try Listener(.unix(path: path))
        defer { listener.shutDown() }
        do {
            _ = try await machine.qmp.execute(.migrate(uri: "unix:" + path))
        } catch let error as QMPError {
            throw Problem(
                "qemu-refused", "The source QEMU does not migrate: \(error).",
                advice: "Devices that cannot be migrated must be unplugged first.")
        }
        guard let qemu = try await offPool("apus-accept", { try listener.accept(timeoutMs: acceptMs) }) else {
            throw Problem(
                "qemu-silent", "The source QEMU did not connect to \(path) within \(acceptMs / 1000) s.",
                advice: "It must be allowed to reach the agent's run directory.")
        }
        return qemu
    }

    static func dialLanes(_ peer: Endpoint, _ token: Token, _ count: Int) throws -> LaneConnections {
        var lanes = LaneConnections()
        for lane in 0..<count {
            let hello = Hello(role: .lane, lane: UInt16(lane), lanes: UInt32(count), token: token)
            do throws(FabricError) {
                lanes = lanes.adding(try Connection.dial(peer, hello, timeoutMs: SessionTimes.dialMs))
            } catch {
                throw Problem(
                    "lane-failed", "Lane \(lane) to \(peer) could not be opened: \(error)",
                    advice: "Check the network, and the destination agent's log.")
            }
        }
        return lanes
    }

    // MARK: QEMU's settings

    /// Everything that would change the stream under us is switched off; what was there is remembered.
    private static func prepare(_ machine: Machine, direct: Bool) async throws {
        let wanted = [
            "return-path": true, "events": true, "xbzrle": false, "multifd": false, "postcopy-ram": false,
            "compress": false, "auto-converge": false, "pause-before-switchover": false, "x-ignore-shared": direct,
            "mapped-ram": false, "release-ram": false, "x-colo": false, "background-snapshot": false,
        ]
        let qmp = machine.qmp
        do {
            let known = try await qmp.execute(.queryMigrateCapabilities)
            let parameters = try await qmp.execute(.any("query-migrate-parameters"))
            if let tls = parameters["tls-creds"]?.string, !tls.isEmpty {
                throw Problem(
                    "qemu-tls", "\(machine.name)'s QEMU encrypts its migration stream itself (tls-creds \(tls)).",
                    advice:
                        "Clear it: migrate-set-parameters with tls-creds \"\". The agents' link has its own protection."
                )
            }
            let changes = wanted.filter { name, on in known.states[name].map { $0 != on } ?? false }
            let saved = SavedSettings(
                capabilities: known.states.filter { changes[$0.key] != nil },
                downtimeLimitMs: parameters["downtime-limit"]?.unsigned,
                maxBandwidth: parameters["max-bandwidth"]?.unsigned)
            // What an earlier attempt could not put back is still what the operator had set.
            if SavedSettings.read(machine) == nil { try saved.write(machine) }
            if !changes.isEmpty { try await qmp.execute(.migrateSetCapabilities(changes)) }
            try await qmp.execute(
                .migrateSetParameters(MigrateParameters(downtimeLimitMs: closedDowntimeMs, maxBandwidth: 0)))
        } catch let error as QMPError {
            throw Problem(
                "qemu-refused", "The source QEMU refuses the settings for a migration: \(error).",
                advice: "Look at its version and its log; another program may be migrating it.")
        }
    }

    /// Puts back what the operator had set; nothing where nothing was changed.
    static func restoreSettings(_ machine: Machine) async {
        // A QEMU that has gone needs no settings.
        guard machine.exit == nil, let saved = SavedSettings.read(machine) else { return }
        if !saved.capabilities.isEmpty {
            _ = try? await machine.qmp.execute(.migrateSetCapabilities(saved.capabilities))
        }
        let parameters = MigrateParameters(downtimeLimitMs: saved.downtimeLimitMs, maxBandwidth: saved.maxBandwidth)
        guard (try? await machine.qmp.execute(.migrateSetParameters(parameters))) != nil else { return }
        try? FileManager.default.removeItem(atPath: SavedSettings.path(machine))
    }

    /// Takes out what an agent that died has left in a QEMU that lives.
    ///
    /// - Parameter runDirectory: the VM's.
    static func takeBackTracker(runDirectory: String) async {
        let journal = DirectAccess.journalPath(runDirectory: runDirectory)
        guard FileManager.default.fileExists(atPath: journal) else { return }
        try? await offPool("apus-detach") { try? WriteTracker.cleanUp(journal: journal) }
    }

    // MARK: The switch-over

    /// The gate is open. Stream port: QEMU compares what is left with the limit at most 100 ms later, and stops the guest
    /// when it fits. Direct port: QEMU begins to migrate, and stops the guest after its few small blocks; beside QEMU it is
    /// let go on, and stops the guest as soon as it has caught up with it; so it is when pages stay.
    func letQemuStop(maxDowntimeMs: Int) async throws {
        let limitMs = UInt64(max(Double(maxDowntimeMs) * Self.countedShare, 1))
        flow.prepareSwitch()
        switch port {
        case .stream where !keepsRest:
            // It loses a part of a pause to what it does not count, and a slowed guest will fit much less soon.
            let isSlowed = (brake?.share ?? 0) > 0
            let isOver = askQemu()
            await limitDowntime(isSlowed && !isOver ? UInt64(Double(limitMs) * Self.slowedShare) : limitMs)
        case .direct:
            let socket = try await Self.connection(of: machine)
            brake?.ease()
            try flow.connect(socket)
        case .stream, .directBesideQemu:
            flow.keepRest()
            await limitDowntime(askQemu() ? limitMs : min(Self.droppedDowntimeMs, limitMs))
            flow.letQemuFinish()
            brake?.ease()
        }
    }

    /// The guest is to move before its memory, once the gate opens.
    func handOver() { keeps.update { $0 = true } }

    /// - Returns: true when it was asked to stop the guest before, in vain.
    private func askQemu() -> Bool {
        patience.update { patience in
            if case .notAsked = patience { patience = .waits(since: Instant.now()) }
            if case .over = patience { return true }
            return false
        }
    }

    /// True once: the guest writes so fast that QEMU does not catch up. It is to stop it all the same; see
    /// ``letQemuStop(maxDowntimeMs:)``.
    ///
    /// - Parameter round: QEMU's first pass over memory that stays takes as long as it takes.
    func losesPatience(round: Int) -> Bool {
        patience.update { patience in
            guard case .waits(let since) = patience else { return false }
            if keepsRest && round < 2 {
                patience = .waits(since: Instant.now())
                return false
            }
            let patienceMs = isDirect || keepsRest ? Self.patienceMs : Self.slowedPatienceMs
            guard Instant.now().ms(since: since) > patienceMs else { return false }
            patience = .over
            return true
        }
    }

    private func limitDowntime(_ ms: UInt64) async {
        _ = try? await machine.qmp.execute(.migrateSetParameters(MigrateParameters(downtimeLimitMs: ms)))
    }

    /// A socket that is dead already is no error: QEMU's state tells what became of it.
    func deliverShut() { try? flow.deliverShut() }

    func stop() {
        brake?.release()
        flow.stop()
    }

    /// Nothing travels meanwhile, so the guest runs as fast as it likes.
    func hold() {
        brake?.hold()
        flow.hold()
    }

    /// Makes QEMU give the migration up, whatever stage it is in.
    static func release(_ machine: Machine) async {
        guard machine.exit == nil else { return }
        _ = try? await machine.qmp.execute(.migrateCancel)
    }
}

/// Where a QEMU stands, in the words of the sessions.
enum QemuObservation {
    /// Nil when QEMU does not answer: ask again.
    static func source(_ machine: Machine) async -> SourceQemu? {
        if machine.exit != nil { return .dead }
        guard let info = try? await machine.qmp.execute(.queryMigrate), let state = await machine.runState() else {
            return machine.exit != nil ? .dead : nil
        }
        switch info.status {
        // Its status stays `completed` when somebody, or this agent after an abort, has let the guest run on.
        case .completed: return state == .running ? .kept(running: true) : .handedOver
        case .none, .failed, .cancelled:
            // QEMU says failed a moment before it has resumed the guest.
            return state == .finishMigrate ? .migrating : .kept(running: state == .running)
        case .setup, .active, .device, .cancelling, .preSwitchover, .waitUnplug, .postcopyActive, .postcopyPaused,
            .postcopyRecover, .other:
            return .migrating
        }
    }

    static func destination(_ machine: Machine) async -> DestinationQemu? {
        if machine.exit != nil { return .dead }
        guard let state = await machine.runState() else { return machine.exit != nil ? .dead : nil }
        return state == .running ? .running : .paused
    }
}

extension OutgoingMigration {
    func openGate() async {
        if let server, let transfer { server.learnLink(bytesPerS: transfer.flow.sample().linkBytesPerS) }
        // Until QEMU has stopped it the guest stays as slow as it was made.
        do { try await transfer?.letQemuStop(maxDowntimeMs: request.maxDowntimeMs) } catch {
            post(.localFailed(SessionProblem("transfer-failed", error)))
        }
    }

    /// What is left fits the pause.
    func gateOpens(predictedDowntimeMs: Double?) {
        // Reconnecting counts: the session keeps it in mind.
        guard session.phase == .transferring else { return }
        // A guest that was paused before shows no STOP.
        if !session.guestRunning { marks.gateOpened = Instant.now() }
        marks.predictedDowntimeMs = predictedDowntimeMs
        if let predictedDowntimeMs, foretold.atGate == nil { foretellGate(downtimeMs: predictedDowntimeMs) }
        post(.gateOpened)
    }

    /// Called from the flow's threads.
    nonisolated func flowReports(_ event: SourceFlowEvent) {
        switch event {
        case .layoutKnown, .lastRoundBegan, .streamEnded: break
        case .converged(let downtimeMs): Task { await self.gateOpens(predictedDowntimeMs: downtimeMs) }
        case .decided(let decision, let shortfall): Task { await self.note(decision, shortfall) }
        case .linkLost: Task { await self.loseLink("a lane") }
        case .failed(let failure): post(.localFailed(SessionProblem(failure)))
        }
    }
}

extension FlowOptions {
    /// What is sent how; the ladder is the job's.
    init(for request: MigrateRequest, _ config: AgentConfig.Migrate) {
        self.init(
            bytesPerS: request.bandwidthMBps.map { $0 * 1e6 }, maxDowntimeMs: Double(request.maxDowntimeMs))
        // In mode postcopy no page travels twice.
        if request.mode == .plain || request.mode == .postcopy { lineBytes = nil }
        if request.mode == .postcopy, config.recordMs > 0 {
            record = RecordOptions(msMax: config.recordMs, sendsMeanwhile: config.sendWhileRecording)
        }
        if let mebibytes = config.lineTableMiB { lineTableBytesMax = mebibytes << 20 }
        holdsHotPages = config.holdHotPages
        verifies = request.verify ?? false
    }
}
