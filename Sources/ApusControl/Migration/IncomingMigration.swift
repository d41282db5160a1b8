import ApusAPI
import ApusFabric
import ApusFlow
import ApusMemory
import ApusQMP
import ApusSystem
import ApusWire
import Foundation
import Logging

/// Runs one ``DestinationSession``; the loop is that of ``OutgoingMigration``.
actor IncomingMigration {
    nonisolated let job: String
    let services: SessionServices
    let logger: Logger
    private nonisolated let inbox: AsyncStream<SessionInput<DestinationEvent>>.Continuation
    private let inputs: AsyncStream<SessionInput<DestinationEvent>>
    nonisolated let router: LinkRouter<DestinationEvent>
    private(set) var session: DestinationSession
    let vm: String
    /// Where the source's agent can be dialled.
    let peer: Endpoint
    private var slot = LinkSlot()
    var link: ControlLink? { slot.link }
    var machine: Machine?
    private(set) var flow: DestinationFlow?
    var token: Token?
    /// Pages that stayed at the source; nil: none can.
    var pull: PullDestination?
    let faultLatencies = FaultLatencies()
    /// Pages are missing, and QEMU's questions for them are not heard yet.
    var lacksPull = false
    private var isStarting = false
    private var isObserving = false
    /// Since when a source that should give pages is not reached.
    var sourceAway: Instant?
    /// The connection that QEMU's return path takes.
    nonisolated let returnPath = Monitor<ControlLink?>(nil)
    /// How long the source tries to restore a lost connection.
    private(set) var reconnectS = 0.0
    var outage = Outage()
    var status: JobStatus
    private var watchers: Task<Void, Never>?
    private(set) var isOver = false
    private var isDialling = false
    private var retryIsPosted = false
    private let startCPUNs = Instant.processCPUNs()
    let started = Instant.now()

    /// A new job, begun by the offer that came over `link`.
    init(_ services: SessionServices, job: String, offer: MigrationOffer, peer: Endpoint, link: ControlLink) {
        self.init(
            services, session: DestinationSession(job: job), vm: offer.vm, peer: peer, machine: nil,
            status: JobStatus(
                id: job, direction: .incoming, vm: offer.vm, peer: peer.description, phase: .preparing,
                startedAt: Date(), maxDowntimeMs: 0), link: link)
    }

    /// A job taken up after a restart of the agent.
    init(
        _ services: SessionServices, restoring record: DestinationRecord, machine: Machine?, peer: Endpoint,
        status: JobStatus
    ) {
        self.init(
            services, session: DestinationSession(restoring: record), vm: status.vm, peer: peer, machine: machine,
            status: status)
    }

    private init(
        _ services: SessionServices, session: DestinationSession, vm: String, peer: Endpoint, machine: Machine?,
        status: JobStatus, link: ControlLink? = nil
    ) {
        self.services = services
        slot = LinkSlot(link)
        self.session = session
        self.vm = vm
        self.peer = peer
        self.machine = machine
        self.status = status
        job = session.job
        logger = services.logger
        (inputs, inbox) = AsyncStream.makeStream(of: SessionInput<DestinationEvent>.self)
        router = LinkRouter(job: session.job, inbox: inbox)
    }

    nonisolated func post(_ event: DestinationEvent) { inbox.yield(.event(event)) }
    /// A connection that the source has dialled for this job, with the message it began with.
    nonisolated func adopt(_ link: ControlLink, first: SessionMessage) {
        guard case .enqueued = inbox.yield(.linked(link, dialled: false)) else { return link.cut() }
        inbox.yield(.message(link, first))
    }

    /// Runs the session to its end.
    func run(first: DestinationEvent) async {
        let beats = Task { await self.beat() }
        watchMachine()
        post(first)
        for await input in inputs {
            for event in events(for: input) where !isOver { await handle(event) }
            if isOver { break }
        }
        beats.cancel()
        watchers?.cancel()
        link?.finish()
        inbox.finish()
        // Whoever came too late is answered by the record when it comes again.
        for await case .linked(let late, _) in inputs { late.cut() }
        // The flow reports to this actor, which holds it: let it go, with its buffers and sockets.
        router.setFlow(nil)
        returnPath.update { $0 = nil }
        flow = nil
    }

    private func events(for input: SessionInput<DestinationEvent>) -> [DestinationEvent] {
        switch input {
        case .event(let event):
            if event == .retryDue { retryIsPosted = false }
            return [event]
        case .linked(let new, let dialled):
            if dialled { isDialling = false }
            switch slot.offer(new, bySource: !dialled) {
            case .declined: return link == nil ? [.connectionLost] : []
            // The peer may know of the loss of the former one before we do.
            case .taken(let lost):
                return lost ? [.connectionLost, .connected] : [.connected]
            }
        case .unreachable:
            isDialling = false
            return [.connectionLost]
        case .unlinked(let link, _):
            return slot.drop(link) ? [.connectionLost] : []
        case .message(let link, let message):
            guard link === self.link else { return [] }
            return [.received(message.told(by: peer.description))]
        }
    }

    private func handle(_ event: DestinationEvent) async {
        var next: DestinationEvent? = event
        var reached: DestinationStage?
        while let event = next {
            next = nil
            let actions = session.handle(event)
            services.trace(job, "\(event)", session.state.name, actions.map(\.point))
            for action in actions {
                await services.rehearsal?.hold("destination", before: action.point)
                guard case .record(let record) = action else {
                    await perform(action)
                    continue
                }
                do {
                    try await services.store.save(
                        SessionRow(
                            job: job, role: .destination, vm: vm, peer: peer.description,
                            record: try SessionRow.encode(record)))
                    reached = record.stage
                } catch {
                    next = .recordFailed(record.stage, "\(error)")
                    break
                }
            }
        }
        // After the actions: the guest stands still meanwhile, and the registry can wait.
        if let reached { await reflect(reached) }
        await publish()
    }

    private func perform(_ action: DestinationAction) async {
        switch action {
        case .record: break
        case .prepareQemu(let offer): await prepareQemu(offer)
        case .connect:
            if isDialling { return }
            if let link, !link.isClosed { return }
            isDialling = true
            router.dial(peer)
        case .send(let message):
            // The last counters before the last message, so that the source's summary has them. Not before others: the
            // guest stands still.
            var message = message
            if case .running(let report) = message {
                link?.post(SessionEnvelope(job: job, message: .heartbeat(counters)).frame)
                if report.isPulling { message = .running(withPull(report)) }
            }
            link?.post(SessionEnvelope(job: job, message: message).frame)
        case .resumeTransfer: await resumeTransfer()
        case .resumePull: await resumePull()
        case .startGuest(let paused): await startGuest(paused: paused)
        case .observeQemu:
            // It may wait for a missing page, and that for news of the source: let these come in meanwhile.
            guard session.pulls else { return await observeQemu() }
            guard !isObserving else { return }
            isObserving = true
            Task {
                await self.observeQemu()
                self.isObserving = false
            }
        case .discardQemu: await discard()
        case .note(let problem): note(problem)
        case .finish: finish()
        }
    }

    var counters: HeartbeatReport {
        let sample = flow?.sample() ?? FlowSample()
        return HeartbeatReport(
            pages: sample.dataPages + sample.zeroPages + sample.referredPages, wireBytes: sample.wireBytes,
            cpuS: Double(Instant.processCPUNs() - startCPUNs) / 1e9)
    }

    // MARK: Filling QEMU

    private func prepareQemu(_ offer: MigrationOffer) async {
        do {
            guard let text = offer.options["token"], let token = Token(text: text),
                let lanes = offer.options["lanes"].flatMap(Int.init), (1...Limits.lanes).contains(lanes),
                let definition = try? JSONDecoder().decode(MachineDefinition.self, from: Data(offer.definition.utf8))
            else {
                throw Problem("peer-message", "The source's offer of \(offer.vm) cannot be read.")
            }
            let machine = try await services.machines.launchIncoming(
                definition, job: job, owningMemory: offer.options["pull"] != nil)
            self.machine = machine
            watchMachine()
            status.notes += machine.launchNotes
            let memory = await MachineMemory.Locator(machine)
            var terms = Self.terms(offer, memory)
            if offer.options["pull"] != nil { terms = try await preparePull(offer, machine, token, terms) }
            let content = await prepareContent(offer, machine)
            terms.content = content?.terms
            let flow = try await startFlow(
                machine, memory, content?.references, lanes: lanes, direct: terms.direct)
            self.flow = flow
            self.token = token
            services.lanes.expect(token, lanes: lanes) { flow.attach($0) }
            connect(flow, as: 0)
            reconnectS = offer.reconnectS ?? 0
            let resumes = reconnectS > 0 && services.config.link.reconnectS > 0
            terms.resumes = resumes ? true : nil
            post(.qemuReady(terms))
        } catch {
            post(.localFailed(SessionProblem("destination-unready", error)))
        }
    }

    /// Whether the blocks that the source would own can be owned here too.
    private static func terms(_ offer: MigrationOffer, _ memory: MachineMemory.Locator) -> TransferTerms {
        guard let text = offer.options["directBlocks"] else { return TransferTerms() }
        guard let blocks = DirectAccess.parse(offered: text) else {
            return TransferTerms(reason: "The source's list of RAM blocks cannot be read.")
        }
        for block in blocks {
            guard case .mapped = memory.location(of: block.name, bytes: block.byteCount) else {
                return TransferTerms(reason: "At the destination RAM block \(block.name) is not in a shared file.")
            }
        }
        return TransferTerms(direct: true)
    }

    private func startFlow(
        _ machine: Machine, _ memory: MachineMemory.Locator, _ references: DestinationReferences?, lanes: Int,
        direct: Bool
    ) async throws -> DestinationFlow {
        let path = machine.runDirectory + "/incoming.sock"
        do {
            // Disks stay with the source until `cont`: a destination that locked them would keep the source from
            // going on after an abort.
            try await machine.qmp.execute(
                .migrateSetCapabilities([
                    "events": true, "return-path": true, "late-block-activate": true, "x-ignore-shared": direct,
                ]))
            try await machine.qmp.execute(.migrateIncoming(uri: "unix:" + path))
        } catch let error as QMPError {
            throw Problem("qemu-refused", "The destination QEMU does not accept a migration: \(error).")
        }
        let qemu = try await offPool("apus-dial") { try Socket.connect(to: .unix(path: path), timeoutMs: 5_000) }
        return try DestinationFlow(
            qemu: qemu, lanes: lanes, isDirect: direct, pull: pull, references: references,
            ports: { block in memory.port(of: block) },
            send: { [returnPath] frame in returnPath.read { $0 }?.post(frame) },
            report: { [self] event in flowReports(event) })
    }

    private nonisolated func flowReports(_ event: DestinationFlowEvent) {
        switch event {
        case .loaded: Task { await self.loaded() }
        case .linkLost: Task { await self.loseLink("a lane") }
        case .failed(let failure):
            Task {
                // A QEMU that refuses its stream says why in its log as it exits.
                if failure.code == "qemu-load" { try? await Task.sleep(for: .milliseconds(200)) }
                let words = failure.code == "qemu-load" ? await self.lastWords() : ""
                self.post(.localFailed(SessionProblem(failure, words: words)))
            }
        }
    }

    private func lastWords() -> String { machine?.lastWords ?? "" }

    private func loaded() {
        post(
            .loaded(
                PreparedReport(
                    pagesInstalled: counters.pages, wireBytes: counters.wireBytes, loadMs: flow?.sinceStreamMs ?? 0,
                    installed: flow?.installed ?? [:], fenceMs: flow?.fenceMs,
                    missingPages: pull.flatMap { $0.isFlipped ? $0.counts().missing : nil })))
    }

    // MARK: After the verdict

    private func startGuest(paused: Bool) async {
        guard let machine else { return post(.qemuDied) }
        if paused { return post(.guestRunning(withPull(ResumeReport(resumeMs: 0, isPaused: true)))) }
        // `cont` may wait for a missing page, and that for a connection: let its news come in meanwhile.
        guard pull != nil else { return await letGuestRun(machine) }
        guard !isStarting else { return }
        isStarting = true
        Task {
            await self.letGuestRun(machine)
            self.isStarting = false
        }
    }

    private func letGuestRun(_ machine: Machine) async {
        let asked = Instant.now()
        do {
            // No question first: a guest that runs already takes no harm, and every round trip is downtime.
            try await machine.qmp.execute(.cont)
            post(.guestRunning(withPull(ResumeReport(resumeMs: Instant.now().ms(since: asked)))))
        } catch {
            post(
                .guestStartFailed(
                    SessionProblem(
                        "guest-start-failed", "The VM is here, complete, but does not start: \(error).",
                        advice:
                            "Look at its disks: another process may hold their locks. It is tried again every second."))
            )
        }
    }

    private func discard() async {
        flow?.stop()
        stopPull()
        if let token { services.lanes.forget(token) }
        await services.machines.discard(vm, job: job)
    }

    /// QEMU keeps its userfaultfd, unless nothing is missing or it is discarded too.
    private func stopPull() {
        pull?.stop()
        pull = nil
        if let token { services.lanes.forgetPull(token) }
    }

    private func finish() {
        isOver = true
        flow?.stop()
        stopPull()
        if let token { services.lanes.forget(token) }
    }

    // MARK: Watching

    func watchMachine() {
        guard let machine, watchers == nil else { return }
        watchers = Task {
            guard let exit = await machine.exited() else { return }
            await machine.qmp.waitUntilClosed()
            // A QEMU that refused its stream has said so on the return path: let that come first.
            try? await Task.sleep(for: .milliseconds(400))
            logger.warning("destination QEMU \(exit.told)", metadata: ["job": "\(job)", "vm": "\(vm)"])
            post(.qemuDied)
        }
    }

    private func beat() async {
        var retry = 0
        while !Task.isCancelled {
            try? await Task.sleep(for: SessionTimes.beat)
            var counters = counters
            counters.pullToken = withPull(ResumeReport()).pullToken
            link?.post(SessionEnvelope(job: job, message: .heartbeat(counters)).frame)
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
            status.progress.elapsedMs = Instant.now().ms(since: started)
            status.progress.wireBytes = counters.wireBytes
            watchOutage()
            watchSource()
            if lacksPull && !isOver { await resumePull() }
            if let pull { status.progress.memoryRemainingBytes = pull.counts().missing * UInt64(Limits.pageBytes) }
            if !isOver { await services.board.publish(status) }
        }
    }
}
