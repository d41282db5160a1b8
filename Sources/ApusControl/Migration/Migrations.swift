public import ApusAPI
import ApusFabric
import ApusFlow
import ApusMemory
import ApusQMP
import ApusSystem
import ApusWire
import Foundation
public import Logging

/// Moves VMs away and receives them: keeps the sessions, and routes connections of other agents to them.
public actor Migrations {
    let machines: Machines
    let store: Store
    private let config: AgentConfig
    let logger: Logger
    let board: JobBoard
    let content: ContentDesk
    private let lanes = LaneRegistry()
    private let rehearsal: Rehearsal?
    private let plans = RecentPlans()
    var outgoing: [String: OutgoingMigration] = [:]
    var incoming: [String: IncomingMigration] = [:]
    private var reception: Reception?

    public init(machines: Machines, store: Store, config: AgentConfig, logger: Logger) {
        self.machines = machines
        self.store = store
        self.config = config
        self.logger = logger
        board = JobBoard(store: store, logger: logger)
        content = ContentDesk(config, logger)
        rehearsal = Rehearsal(runDirectory: config.runDirectory)
    }

    /// An offer holds it as text within text, which may double it.
    private static let definitionBytesMax = SessionLimits.offerBytesMax / 2 - (64 << 10)

    // MARK: What people ask for

    /// Starts to move a VM; returns once the job exists.
    public func start(_ request: MigrateRequest) async throws -> JobStatus {
        let peer = try endpoint(of: request.host)
        guard request.maxDowntimeMs > 0, request.maxDowntimeMs <= 2_000_000 else {
            throw Problem(
                "downtime-invalid", "A downtime of \(request.maxDowntimeMs) ms is not possible.",
                advice: "Give 1 to 2000000 ms.")
        }
        if let rate = request.bandwidthMBps, rate < 0.1 {
            throw Problem(
                "bandwidth-invalid", "A bandwidth of \(rate) MB/s is too little to migrate.",
                advice: "Give at least 0.1, or none.")
        }
        if let deadline = request.deadlineS, !(deadline > 0) {
            throw Problem(
                "deadline-invalid", "A deadline of \(deadline) s is not possible.", advice: "Give more than 0, or none."
            )
        }
        if let problem = OutgoingMigration.refusal(request) { throw problem }
        let job = Self.newJobID()
        let machine = try await machines.checkOut(request.vm, job: job)
        let services = self.services
        guard let state = await machine.runState() else {
            try? await machines.giveBack(machine)
            throw Problem("vm-unresponsive", "\(request.vm)'s QEMU does not answer.")
        }
        let migration = OutgoingMigration(
            services, job: job, machine: machine, peer: peer, request, guestRunning: state == .running)
        await migration.recall()
        // Moving RAM takes seconds: the job is there meanwhile, to be watched and aborted.
        if request.rebaseMemory ?? false, request.port != .stream {
            return await begin(migration) {
                do { return .start(try await self.offer(migration, machine)) } catch {
                    return .localFailed(SessionProblem("offer-failed", error))
                }
            }
        }
        do {
            let offer = try await offer(migration, machine)
            return await begin(migration) { .start(offer) }
        } catch {
            await migration.letGoOfMemory()
            try? await machines.giveBack(machine)
            throw error
        }
    }

    private func begin(
        _ migration: OutgoingMigration, _ first: @escaping @Sendable () async -> SourceEvent
    ) async -> JobStatus {
        outgoing[migration.job] = migration
        let status = await migration.status
        await board.publish(status)
        Task {
            await migration.run(first: await first())
            self.ended(migration.job)
        }
        return status
    }

    /// Says what would become of a migration. The VM is taken while it is looked at.
    public func plan(_ request: PlanRequest) async throws -> PlanReport {
        let plan = try await Planner(machines: machines, store: store, config: config, content: content)
            .plan(request, peer: endpoint(of: request.host))
        plans.keep(plan)
        return plan
    }

    /// How near the forecasts of past migrations came.
    public func accuracy() async throws -> AccuracyReport { AccuracyReport(try await store.forecasts()) }

    private func offer(_ migration: OutgoingMigration, _ machine: Machine) async throws -> MigrationOffer {
        let direct = try await migration.choosePort(machine)
        let fetchable = try await migration.offerFetchable(machine)
        let definition = try SessionRow.encode(machine.definition)
        guard definition.utf8.count <= Self.definitionBytesMax else {
            throw Problem(
                "definition-too-long",
                "The command of \(machine.name) has \(definition.utf8.count) bytes, more than \(Self.definitionBytesMax).",
                advice: "Put parts of it into a file and use -readconfig.")
        }
        return MigrationOffer(
            vm: await migration.request.vm, definition: definition,
            ramBytes: machine.definition.ramBytes, qemuVersion: machine.definition.qemuVersion,
            guestRunning: await migration.session.guestRunning,
            options: [
                "token": migration.token.text, "lanes": "\(await migration.offerLanes())",
                "linkPort": "\(services.linkPort)",
                "directBlocks": direct?.offered, "content": await migration.offerContent(machine),
                "pull": await migration.pull == .nothing ? nil : "1", "pullBlocks": fetchable,
            ].compactMapValues { $0 }, reconnectS: config.link.reconnectS > 0 ? config.link.reconnectS : nil)
    }

    // MARK: The agent's life

    /// Takes up what an earlier agent left, then receives VMs from other agents until cancelled.
    ///
    /// - Throws: `Problem` when the link address cannot be used, or the store cannot be read.
    public func run() async throws {
        let endpoint = try linkEndpoint()
        // No peer may ask before every record is read: an unknown job is answered `abort`.
        let port: UInt16
        if case .tcp(_, let wanted) = endpoint { port = wanted } else { port = 0 }
        linkPort = port
        try await restore()
        let lanes = self.lanes
        let probes = ProbeDesk { [content] in content.reply(to: $0) }
        do throws(SystemError) {
            let reception = try Reception(
                endpoint,
                decide: { hello in
                    switch hello.role {
                    case .control: nil
                    case .probe: probes.refusal()
                    case .lane, .urgent: lanes.refusal(of: hello)
                    }
                },
                accepted: { [weak self] connection in
                    switch connection.hello.role {
                    case .lane, .urgent: return lanes.attach(connection)
                    case .probe: return probes.answer(connection)
                    case .control: break
                    }
                    guard let self else { return }
                    InboundLink.begin(connection, self)
                })
            self.reception = reception
            if case .tcp(_, let bound) = reception.endpoint { linkPort = bound }
            logger.info("link listens", metadata: ["address": "\(reception.endpoint)"])
        } catch {
            throw Problem(
                "link-unusable", "The link cannot listen at \(endpoint): \(error).",
                advice: "Another agent may use the port; see link.listen in the config file.")
        }
        defer { reception?.shutDown() }
        let indexing = Task { [content, machines] in await content.watch(machines) }
        defer { indexing.cancel() }
        try? await Task.sleep(for: .seconds(3600 * 24 * 365 * 10))
        await stopOutgoing()
    }

    /// Orderly stop: jobs that are not past their commit point are aborted, so that their VMs run on here.
    private func stopOutgoing() async {
        for migration in outgoing.values { migration.post(.userAborted) }
        for migration in incoming.values { migration.post(.localFailed(.agentStopping)) }
        for _ in 0..<50 where !outgoing.isEmpty || !incoming.isEmpty {
            // The task is cancelled, so a sleep would return at once.
            await withCheckedContinuation { continuation in
                _ = try? WorkerThread("apus-stop") {
                    pause(ms: 100)
                    continuation.resume()
                }
            }
        }
    }

    private var linkPort: UInt16 = 0
    var services: SessionServices {
        SessionServices(
            machines: machines, store: store, config: config, board: board, content: content, logger: logger,
            linkPort: linkPort, lanes: lanes, rehearsal: rehearsal, plans: plans)
    }

    func ended(_ job: String) {
        outgoing[job] = nil
        incoming[job] = nil
    }

    private func linkEndpoint() throws(Problem) -> Endpoint {
        guard let endpoint = Endpoint(config.link.listen, defaultPort: UInt16(AgentConfig.linkPort)) else {
            throw Problem("config-invalid", "link.listen is not an address: \(config.link.listen).")
        }
        guard endpoint.isLocal || config.link.insecure else {
            throw Problem(
                "insecure", "The link would listen at \(endpoint) without encryption or authentication.",
                advice: "Give --insecure (link.insecure) if everyone who can reach it may be trusted.")
        }
        if !endpoint.isLocal {
            logger.warning("the link is neither encrypted nor authenticated", metadata: ["address": "\(endpoint)"])
        }
        return endpoint
    }

    private func endpoint(of host: String) throws(Problem) -> Endpoint {
        let address = config.hosts[host] ?? host
        guard let endpoint = Endpoint(address, defaultPort: UInt16(AgentConfig.linkPort)) else {
            throw Problem(
                "host-invalid", "\(host) is not a host: \(address) is no ADDRESS[:PORT].",
                advice: "Give an address, or a name under hosts in the agent's configuration file.")
        }
        return endpoint
    }

    private static func newJobID() -> String {
        "m-" + String(UInt64.random(in: 1 << 44..<1 << 48), radix: 16)
    }

    // MARK: Connections of other agents

    /// The first message of a connection says whose it is.
    func route(_ link: ControlLink, _ envelope: SessionEnvelope) async -> (any LinkOwner)? {
        let job = envelope.job
        if let migration = outgoing[job] {
            if case .open = envelope.message {
                return refuse(
                    link, job,
                    SessionProblem(
                        "destination-is-source",
                        "This agent has \(await migration.request.vm) already; it is the one that sends it.",
                        advice: "Name another agent's address."))
            }
            migration.adopt(link, first: envelope.message)
            return migration.router
        }
        if let migration = incoming[job] {
            // A second offer for the same job would be another source's.
            if case .open = envelope.message { return refuse(link, job, .jobExists(job)) }
            migration.adopt(link, first: envelope.message)
            return migration.router
        }
        if case .open(let offer) = envelope.message { return await begin(link, job, offer) }
        await answerFinished(link, envelope)
        return nil
    }

    private func begin(_ link: ControlLink, _ job: String, _ offer: MigrationOffer) async -> (any LinkOwner)? {
        guard (try? await store.session(job)) == .some(.none) else {
            return refuse(link, job, .jobExists(job))
        }
        let port = offer.options["linkPort"].flatMap(UInt16.init) ?? UInt16(AgentConfig.linkPort)
        let peer = Endpoint.tcp(host: link.peerHost ?? "127.0.0.1", port: port)
        let migration = IncomingMigration(services, job: job, offer: offer, peer: peer, link: link)
        incoming[job] = migration
        Task {
            await migration.run(first: .received(.open(offer)))
            self.ended(job)
        }
        return migration.router
    }

    private func refuse(_ link: ControlLink, _ job: String, _ problem: SessionProblem) -> (any LinkOwner)? {
        link.post(SessionEnvelope(job: job, message: .refused(problem)).frame)
        link.finish()
        return nil
    }

    /// A question about a job that has no runtime any more: its record answers.
    private func answerFinished(_ link: ControlLink, _ envelope: SessionEnvelope) async {
        let job = envelope.job
        var answers: [SessionMessage] = []
        do {
            if let row = try await store.session(job) {
                switch row.role {
                case .source:
                    var session = SourceSession(restoring: try row.decode())
                    guard session.phase.isFinal else { break }
                    for case .send(let message) in session.handle(.received(envelope.message)) {
                        answers.append(message)
                    }
                case .destination:
                    var session = DestinationSession(restoring: try row.decode())
                    guard session.phase.isFinal else { break }
                    for case .send(let message) in session.handle(.received(envelope.message)) {
                        answers.append(message)
                    }
                }
            } else if envelope.message == .verdictQuery || envelope.message == .cutOff {
                answers = [SourceSession.verdict(forUnknownJob: job)]
            } else if let answer = DestinationSession.answer(forUnknownJob: job, to: envelope.message) {
                answers = [answer]
            }
        } catch { logger.error("cannot answer for job \(job): \(error)") }
        for answer in answers { link.post(SessionEnvelope(job: job, message: answer).frame) }
        link.finish()
    }
}

extension SessionProblem {
    static let agentStopping = SessionProblem(
        "agent-stopping", "The agent was told to stop.", advice: "Migrate again when it runs.")

    static func jobExists(_ job: String) -> SessionProblem {
        SessionProblem("job-exists", "Job \(job) has been here before.", advice: "Migrate again, as a new job.")
    }
}

/// Takes frames of a link once it is known whose it is.
protocol LinkOwner: Sendable {
    func receive(_ link: ControlLink, _ frame: ControlLink.Message)
    func closed(_ link: ControlLink, _ error: FabricError?)
}

extension LinkRouter: LinkOwner {}

/// A connection that another agent has opened: its first message decides whose it is, the rest goes there.
enum InboundLink {
    private enum State: Sendable {
        case unclaimed
        case claimed(any LinkOwner)
        case nobody
    }

    static func begin(_ connection: consuming Connection, _ migrations: Migrations) {
        let state = Monitor(State.unclaimed)
        let link = try? ControlLink(
            connection,
            received: { link, frame in
                switch state.read({ $0 }) {
                case .claimed(let owner): owner.receive(link, frame)
                case .nobody: break
                case .unclaimed: claim(link, frame, state, migrations)
                }
            },
            closed: { link, error in
                if case .claimed(let owner) = state.read({ $0 }) { owner.closed(link, error) }
            })
        // Who has connected and does not say what for is not wanted.
        Task { [weak link] in
            try? await Task.sleep(for: SessionTimes.claim)
            if case .unclaimed = state.read({ $0 }) { link?.cut() }
        }
    }

    /// On the link's reader thread, which waits for the answer: no second frame may overtake the first.
    private static func claim(
        _ link: ControlLink, _ frame: ControlLink.Message, _ state: Monitor<State>, _ migrations: Migrations
    ) {
        guard frame.kind == .control, let envelope = try? SessionEnvelope(frame.bytes) else { return link.cut() }
        // Heartbeats of a job that has ended here mean nothing.
        if case .heartbeat = envelope.message { return }
        let decided = Latch()
        Task {
            let owner = await migrations.route(link, envelope)
            state.update { $0 = owner.map(State.claimed) ?? .nobody }
            decided.open()
        }
        decided.wait()
    }
}
