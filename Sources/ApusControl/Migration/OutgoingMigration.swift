import ApusAPI
import ApusFabric
import ApusFlow
import ApusQMP
import ApusSystem
import ApusWire
import Foundation
import Logging

/// Runs one ``SourceSession``: turns what happens into events, one at a time, and performs the actions they bring.
///
/// ```
///   QMP events --.
///   link --------+--> inbox --> serial loop: handle(event) -> actions -> performed in order -> phase published
///   flow --------|                             ^ a record that fails drops the rest of its list
///   API, timers -'
/// ```
actor OutgoingMigration {
    nonisolated let job: String
    let services: SessionServices
    /// nil: its QEMU is gone, or a restarted agent has not reached its monitor yet.
    private(set) var machine: Machine?
    /// Without a mode, that is chosen before anything is done.
    var request: MigrateRequest
    let peer: Endpoint
    let token = Token.random()
    let logger: Logger
    private nonisolated let inbox: AsyncStream<SessionInput<SourceEvent>>.Continuation
    private let inputs: AsyncStream<SessionInput<SourceEvent>>
    nonisolated let router: LinkRouter<SourceEvent>
    private(set) var session: SourceSession
    private var slot = LinkSlot()
    var link: ControlLink? { slot.link }
    private var everLinked = false
    private var isDialling = false
    private var retryIsPosted = false
    private var machineWatch: Task<Void, Never>?
    private var isOver = false
    private var deadlineSaid = false
    private var switchLimitSaid = false
    private var stallSaid = false
    var outage = Outage()
    var transfer: OutgoingTransfer?
    /// The VM's RAM, held from outside until the job is over; nil: it goes by the stream port.
    var memory: DirectMemory?
    /// Stream port: the RAM of which pages may stay here when the guest moves; nil: none do.
    var fetchable: FetchableMemory?
    /// Gives pages that stayed here to the destination; nil: none did, or a restarted agent has not been asked yet.
    var server: PullServer?
    /// As they were offered.
    var laneCount = 1
    /// What need not travel.
    var content = OutgoingContent()
    /// STOP events to come that are only for finishing disk requests.
    nonisolated let drainStops = Monitor(0)
    /// For what is done before the session begins.
    nonisolated let abortAsked = Monitor(false)
    /// What the operator allows may be impossible with this VM or these hosts.
    var canHandOver = true
    /// What is known of this VM from earlier.
    var prior = VMHistory()
    /// What is foretold of this job.
    var foretold = ForetoldJob()
    var marks = SwitchMarks()
    var status: JobStatus
    var monitor: ProgressMonitor
    /// CPU time of the agent when the job began.
    let startCPUNs = Instant.processCPUNs()
    let started = Instant.now()

    /// A new job.
    init(
        _ services: SessionServices, job: String, machine: Machine, peer: Endpoint, _ request: MigrateRequest,
        guestRunning: Bool
    ) {
        self.init(
            services, machine: machine, peer: peer, request,
            session: SourceSession(job: job, guestRunning: guestRunning),
            status: JobStatus(
                id: job, direction: .outgoing, vm: request.vm, peer: request.host, phase: .preparing,
                startedAt: Date(), maxDowntimeMs: request.maxDowntimeMs))
    }

    /// A job taken up after a restart of the agent.
    init(
        _ services: SessionServices, restoring record: SourceRecord, machine: Machine?, peer: Endpoint,
        status: JobStatus
    ) {
        self.init(
            services, machine: machine, peer: peer,
            MigrateRequest(vm: status.vm, host: status.peer, maxDowntimeMs: status.maxDowntimeMs),
            session: SourceSession(restoring: record), status: status)
    }

    private init(
        _ services: SessionServices, machine: Machine?, peer: Endpoint, _ request: MigrateRequest,
        session: SourceSession, status: JobStatus
    ) {
        self.services = services
        self.machine = machine
        self.request = request
        self.peer = peer
        self.session = session
        self.status = status
        job = session.job
        logger = services.logger
        monitor = ProgressMonitor(
            Self.gate(
                request, services.config.migrate, VMHistory(), guestRunning: session.guestRunning,
                ramBytes: machine?.definition.ramBytes ?? 0),
            followsAfterMs: Self.followsAfterMs(
                request, services.config.migrate, guestRunning: session.guestRunning))
        (inputs, inbox) = AsyncStream.makeStream(of: SessionInput<SourceEvent>.self)
        router = LinkRouter(job: session.job, inbox: inbox)
    }

    /// Something happened. From any thread or task.
    nonisolated func post(_ event: SourceEvent) {
        if event == .userAborted { abortAsked.update { $0 = true } }
        inbox.yield(.event(event))
    }
    /// A connection that the destination has dialled for this job, with the message it began with.
    nonisolated func adopt(_ link: ControlLink, first: SessionMessage) {
        guard case .enqueued = inbox.yield(.linked(link, dialled: false)) else { return link.cut() }
        inbox.yield(.message(link, first))
    }

    /// Runs the session to its end.
    func run(first: SourceEvent) async {
        let watchers = Task { await self.watch() }
        watchMachine()
        post(first)
        for await input in inputs {
            for event in await events(for: input) where !isOver { await handle(event) }
            if isOver { break }
        }
        watchers.cancel()
        machineWatch?.cancel()
        link?.finish()
        inbox.finish()
        // Whoever came too late is answered by the record when it comes again.
        for await case .linked(let late, _) in inputs { late.cut() }
        // The flow reports to this actor, which holds it: let it go, with its buffers and sockets.
        router.setFlow(nil)
        transfer = nil
        server = nil
    }

    private func events(for input: SessionInput<SourceEvent>) async -> [SourceEvent] {
        switch input {
        case .event(let event):
            if event == .retryDue { retryIsPosted = false }
            if event == .qemuStopped { marks.stopped = marks.stopped ?? Instant.now() }
            return [event]
        case .linked(let new, let dialled):
            if dialled { isDialling = false }
            switch slot.offer(new, bySource: dialled) {
            case .declined: return link == nil ? [.connectionLost] : []
            // The peer may know of the loss of the former one before we do.
            case .taken(let lost):
                everLinked = true
                if lost { server?.hold() }
                return lost ? [.connectionLost, .connected] : [.connected]
            }
        case .unreachable(let error):
            isDialling = false
            return [unreachable(error)]
        case .unlinked(let link, _):
            guard slot.drop(link) else { return [] }
            // One loss takes everything.
            server?.hold()
            return [.connectionLost]
        case .message(let link, let message):
            guard link === self.link else { return [] }
            await note(message)
            return [.received(message.told(by: request.host))]
        }
    }

    private func handle(_ event: SourceEvent) async {
        var next: SourceEvent? = event
        while let event = next {
            next = nil
            let actions = session.handle(event)
            services.trace(job, "\(event)", session.state.name, actions.map(\.point))
            for action in actions {
                await services.rehearsal?.hold("source", before: action.point)
                guard case .record(let record) = action else {
                    await perform(action)
                    continue
                }
                do {
                    try await services.store.save(
                        SessionRow(
                            job: job, role: .source, vm: request.vm, peer: peer.description,
                            record: try SessionRow.encode(record)), durable: record.stage.isNeededAfterPowerLoss)
                    if record.stage == .committed { marks.committed = Instant.now() }
                } catch {
                    next = .recordFailed(record.stage, "\(error)")
                    break
                }
            }
            // Behind `commit`; see SourceSession.
            if actions.contains(where: \.isCommit) { try? await services.store.sync() }
        }
        await publish()
    }

    private func perform(_ action: SourceAction) async {
        switch action {
        case .record: break
        case .connect: connect()
        case .send(let message): link?.post(SessionEnvelope(job: job, message: message).frame)
        case .startTransfer: await startTransfer()
        case .holdTransfer: holdTransfer()
        case .resumeTransfer(let point): await resumeTransfer(point)
        case .serve(let token): await serve(token: token)
        case .holdService: holdService()
        case .raiseDowntimeLimit: await openGate()
        case .deliverShut: transfer?.deliverShut()
        case .releaseQemu:
            transfer?.stop()
            if let machine { await OutgoingTransfer.release(machine) }
        case .observeQemu: await observeQemu()
        case .resumeGuest: await resumeGuest()
        case .endQemu:
            holdLeftMemory()
            await services.machines.departed(request.vm, job: job, to: request.host)
        case .note(let problem): status.notes.append(Problem(problem).description)
        case .finish: await finish()
        }
    }

    private func connect() {
        if isDialling { return }
        if let link, !link.isClosed { return }
        isDialling = true
        router.dial(peer)
    }

    /// A job that never reached its destination says why; later, the loss itself is what matters.
    private func unreachable(_ error: FabricError) -> SourceEvent {
        everLinked ? .connectionLost : .localFailed(SessionProblem(error, dialling: peer, as: request.host))
    }

    private func startTransfer() async {
        guard let link else { return post(.connectionLost) }
        guard let machine else { return post(.qemuDied(watched: false)) }
        router.expectFlow()
        do {
            let transfer = try await OutgoingTransfer(self, machine, link)
            self.transfer = transfer
            router.setFlow { frame in
                // Only the return path comes this way; a QEMU that no longer listens is noticed elsewhere.
                if frame.kind == .returnPath { try? transfer.flow.writeReturnPath(frame.bytes) }
            }
            foretellStart(transfer.isDirect ? .direct : .stream)
        } catch {
            // The destination is told yet why.
            router.setFlow { _ in }
            post(.localFailed(SessionProblem("transfer-failed", error)))
        }
    }

    private func resumeGuest() async {
        do { try await machine?.qmp.execute(.cont) } catch {
            let note = "The guest could not be resumed; it is tried again and again: \(error)."
            if !status.notes.contains(note) { status.notes.append(note) }
            try? await Task.sleep(for: SessionTimes.beat)
        }
    }

    func observeQemu() async {
        if machine == nil {
            switch await services.machines.recover(request.vm, job: job) {
            case .gone: return post(.qemuObserved(.dead))
            case .unresponsive: return
            case .found(let found):
                machine = found
                watchMachine()
            }
        }
        if let machine, let seen = await QemuObservation.source(machine) { post(.qemuObserved(seen)) }
    }

    private func finish() async {
        isOver = true
        keepLeftMemory()
        transfer?.stop()
        server?.stop()
        await letGoOfMemory()
        if let machine {
            await OutgoingTransfer.takeBackTracker(runDirectory: machine.runDirectory)
            FetchableMemory.remove(machine.runDirectory)
            await OutgoingTransfer.restoreSettings(machine)
        }
        switch session.state {
        // What is left of a lost VM is its operator's too.
        case .kept, .lost: await services.machines.release(request.vm, job: job)
        case .completed: break
        case .idle, .connecting, .opening, .transferring, .reconnecting, .switching, .orphaned, .releasing, .deciding,
            .undecidable,
            .committed, .serving, .aborting, .recovering:
            preconditionFailure("a session finishes in a final state")
        }
    }

    // MARK: Watching

    private func watch() async {
        await withTaskGroup(of: Void.self) { group in
            group.addTask { await self.beat() }
            group.addTask { await self.sample() }
        }
    }

    private func watchMachine() {
        guard let machine, machineWatch == nil else { return }
        machineWatch = Task {
            await withTaskGroup(of: Void.self) { group in
                group.addTask { await self.watchQemu(machine) }
                group.addTask {
                    guard let exit = await machine.exited() else { return }
                    // QEMU's own last words come before its death: let them in first.
                    await machine.qmp.waitUntilClosed()
                    try? await Task.sleep(for: .milliseconds(50))
                    self.logger.warning("QEMU \(exit.told)", metadata: ["job": "\(self.job)", "vm": "\(machine.name)"])
                    await self.loseQemu()
                }
            }
        }
    }

    private func watchQemu(_ machine: Machine) async {
        for await event in machine.qmp.events() {
            switch event.kind {
            case .stop:
                if transfer != nil && !drainStops.takeOne() {
                    marks.stands = transfer?.brake?.standsSince
                    transfer?.brake?.release()
                    foretellUnaskedStop()
                    post(.qemuStopped)
                }
            case .migration(.completed):
                post(.qemuCompleted)
                let info = try? await machine.qmp.execute(.queryMigrate)
                marks.qemuDowntimeMs = info?.downtimeMs.map(Double.init)
                marks.rounds = info?.ram.map { Int($0.dirtySyncCount) }
            case .migration(.failed):
                let text = (try? await machine.qmp.execute(.queryMigrate))?.errorDescription
                post(.qemuFailed(text ?? "no reason given"))
            case .resume, .shutdown, .reset, .migration, .migrationPass, .other: break
            }
        }
    }

    private func beat() async {
        var retry = 0
        while !Task.isCancelled {
            try? await Task.sleep(for: SessionTimes.beat)
            link?.post(SessionEnvelope(job: job, message: .heartbeat(.init())).frame)
            if let link, !link.isClosed, Instant.now().ms(since: link.lastHeard) > SessionTimes.silenceMs {
                post(.peerSilent)
                link.cut()
            }
            retry += 1
            // One at a time: actions may take longer than it takes the next to fall due.
            if session.wantsRetry && retry % 2 == 0 && !retryIsPosted {
                retryIsPosted = true
                post(.retryDue)
            }
            watchOutage()
            if let limit = request.limitS, !deadlineSaid, Instant.now().ms(since: started) > limit * 1000 {
                deadlineSaid = true
                passDeadline()
            }
            if let stopped = marks.stopped ?? marks.gateOpened, marks.prepared == nil, !switchLimitSaid,
                Instant.now().ms(since: stopped) > SessionTimes.switchOverMs(maxDowntimeMs: request.maxDowntimeMs)
            {
                switchLimitSaid = true
                post(.switchOverTimedOut)
            }
        }
    }

    private func sample() async {
        while !Task.isCancelled {
            try? await Task.sleep(for: SessionTimes.sample)
            guard let transfer, session.phase != .pulling, !status.phase.isFinal else { continue }
            // While the guest is stopped QEMU does not answer, and there is nothing left to decide.
            let info =
                session.state == .transferring && !transfer.isDirect
                ? try? await machine?.qmp.execute(.queryMigrate, timeout: .seconds(5)) : nil
            if isReconnecting { monitor.forgetStall() }
            monitor.saw(transfer.flow.takeLooks(), nowNs: Instant.now().ns)
            let decided = monitor.take(
                transfer.flow.sample(), info, transfer.pedal, nowNs: Instant.now().ns, into: &status.progress)
            if session.state == .transferring, transfer.losesPatience(round: monitor.round) {
                gateOpens(predictedDowntimeMs: marks.predictedDowntimeMs)
            }
            foretellFirstPass(monitor.sample)
            if let (decision, shortfall) = decided { act(on: decision, shortfall) }
            if monitor.stalledMs > SessionTimes.stallMs && !stallSaid {
                stallSaid = true
                post(
                    .localFailed(
                        SessionProblem(
                            "peer-stalled",
                            "The destination has not confirmed a byte for \(Int(SessionTimes.stallMs / 1000)) s.",
                            advice: "Check the link and the destination's log.")))
            }
            // The phase is published by the serial loop alone, when its actions are done.
            if !isOver { await services.board.publish(status) }
        }
    }
}
