public import ApusFabric
public import ApusMemory
public import ApusSystem
internal import ApusWire

// The whole route of a page, once:
//
//        SOURCE AGENT                                                     DESTINATION AGENT
//   RAM file ==> DirectSource .
//   QEMU ==> StreamSource ==> LaneQueue ==> SendLane ==== frames ====> ReceiveLane ==> RAMInstaller ==> guest RAM
//                  |            ^  pool  |     ^------- credits ---------'      `----> QemuFeed (blocks QEMU hides)
//                  |            `-- stream frames: lane 0; what is behind the fence waits for all lanes --^
//                  `==> ControlLink ======== head of the stream, layout ====> control ====================^
//   QEMU <== return path <== ControlLink <========= return path ============ reader <==== QEMU
//
// Every box with an arrow into it is one thread. Nothing here knows QMP, jobs or decisions: that is ApusControl's.

/// What a source flow tells its session.
public enum SourceFlowEvent: Sendable, Equatable {
    case layoutKnown(Layout)
    /// Direct port: what is left fits the pause. QEMU is to be told to migrate (``SourceFlow/connect(_:)``), or, if it does
    /// so already, to be let go on (``SourceFlow/letQemuFinish()``). Stream port: pages stay from the first on, so that QEMU
    /// may stop the guest as soon as it can.
    case converged(predictedDowntimeMs: Double)
    /// Direct port: the gate has decided, and what it knew.
    case decided(SwitchGate.Decision, Shortfall)
    /// QEMU has stopped the guest and sends the last pages.
    case lastRoundBegan
    /// QEMU has closed the migration socket in good order, or its stream is complete.
    case streamEnded
    /// A lane's connection broke; said once per loss. The flow stands still until ``SourceFlow/resume(at:control:lanes:)``.
    case linkLost
    /// The flow is over; nothing more comes. The first failure only.
    case failed(FlowFailure)
}

/// What a destination flow tells its session.
public enum DestinationFlowEvent: Sendable, Equatable {
    /// The destination's QEMU has loaded everything and said so (SHUT 0).
    case loaded
    /// A lane's connection broke, and a new one is waited for; said once per loss.
    case linkLost
    case failed(FlowFailure)
}

public struct FlowOptions: Sendable {
    /// Upper bound of bytes per second on the link; nil: none.
    public var bytesPerS: Double?
    /// The longest pause; a direct source opens the gate itself.
    public var maxDowntimeMs: Double
    /// Bytes of a line, 128 to 2048, a power of two: a page that is sent again travels as its changed lines. Nil: pages
    /// always travel whole.
    public var lineBytes: Int? = 128
    /// Cap of the memory for line hashes, bytes; with lines of 128 bytes they never take more than 6.3 % of the RAM sent.
    public var lineTableBytesMax = Int.max
    /// Pages that are written in every round wait until they cool, or until the switch.
    public var holdsHotPages = true
    /// Compare all pages by digest before the switch, and send again what differs. Prolongs the pause.
    public var verifies = false
    /// Where pages may be found that need not travel; nil: nowhere.
    public var references: SourceReferences?
    /// What stays at the source when the guest moves, to be fetched from there.
    public var pull = Pull.nothing
    /// Gives what stays. The last lane, of at least two, is handed over to it behind the last fence.
    public var server: PullServer?
    /// Stream port: the RAM blocks of which pages may stay; nil: none. What is not in them travels before the guest moves.
    public var fetchable: Layout?
    /// Stream port: told what the guest wrote last, when it is stopped.
    public var recorded = Monitor(RecordOutcome())

    /// What the guest uses is recorded just before it moves at once; nil: it is not.
    public var record: RecordOptions?
    /// Stream port: no page travels before the guest does.
    var keepsAtOnce: Bool { pull == .everything && !(record?.sendsMeanwhile ?? false) }
    /// What a guest that is too fast may be met with.
    public var ladder = Ladder()
    /// Of its vCPUs; nil: they cannot be slowed down.
    public var brake: Brake?
    /// What its stops cost with nothing left to send, wire bytes of a page that is sent again because it has changed (nil: not
    /// known), and how it wrote when it was last moved or looked at.
    public var fixedDowntimeMs = SwitchGate.fixedMs
    public var againBytesPerPage: Double?
    public var history = WorkingSetHistory()

    public enum Pull: Sendable, Equatable {
        /// The guest moves when everything is at the destination.
        case nothing
        /// Memory travels as long as that makes less of it; the rest is fetched.
        case rest
        /// Everything travels first, unless the gate must hand the guest over before.
        case ifNeeded
        /// The guest moves at once, or when what it uses has been recorded, and what has not travelled by then follows.
        case everything
    }

    public init(bytesPerS: Double? = nil, maxDowntimeMs: Double = 300) {
        self.bytesPerS = bytesPerS
        self.maxDowntimeMs = maxDowntimeMs
    }
}

/// Where a source's pages come from.
public enum SourcePort: Sendable {
    /// QEMU's migration stream: the accepted connection of the source QEMU.
    case stream(Socket)
    /// Guest RAM itself. QEMU connects when the flow says that it has converged; at once if it sends pages too.
    case direct(DirectMemory)
}

/// The source's half: from the VM's memory to the lanes.
public final class SourceFlow: Sendable {
    /// nil: it has not connected yet.
    private let qemu = Monitor<Socket?>(nil)
    private let direct: StreamSource.DirectPages?
    private let roundCounters = RoundCounters()
    private let control: ControlOutlet
    private let queues: [LaneQueue]
    private let counters: [LaneCounters]
    private let readerCounters = LaneCounters()
    private let directCounters = LaneCounters()
    private let hotPages: StreamSource.Hold?
    private let keepOrder: KeepOrder?
    /// Of a guest that goes by the stream port.
    private let looks = WrittenLooks()
    private let references: SourceReferences?
    private let docks: [LaneDock]
    private let loss = LossReport()
    private let report: @Sendable (SourceFlowEvent) -> Void
    private let guest: Monitor<GuestReader?>
    private let over = Monitor(false)

    /// Starts all threads.
    /// - Parameters:
    ///   - lanes: connected lanes, in order.
    ///   - memory: stream port: how the source's RAM can be read past QEMU.
    ///   - report: called from any of the flow's threads; must not block.
    public init(
        _ port: SourcePort, control: ControlLink, lanes: LaneConnections, options: FlowOptions,
        memory: @escaping @Sendable (RAMBlock) -> BlockPort = { _ in .stream },
        report: @escaping @Sendable (SourceFlowEvent) -> Void
    ) throws(SystemError) {
        self.control = ControlOutlet(control)
        references = options.references
        let guest = Monitor<GuestReader?>(nil)
        self.guest = guest
        let count = lanes.count
        queues = (0..<count).map { _ in LaneQueue() }
        counters = (0..<count).map { _ in LaneCounters() }
        docks = (0..<count).map { _ in LaneDock() }
        switch port {
        case .stream:
            direct = nil
            keepOrder = options.pull == .nothing ? nil : options.fetchable.map { KeepOrder($0, options) }
            hotPages =
                options.holdsHotPages && !options.keepsAtOnce
                ? StreamSource.Hold(maxDowntimeMs: options.maxDowntimeMs, lanes: counters, counters: HoldCounters())
                : nil
            self.report = { [looks] event in
                if case .layoutKnown(let layout) = event {
                    let reader = GuestReader(layout, layout.blocks.map(memory))
                    guest.update { $0 = reader }
                    if !options.keepsAtOnce { looks.begin(reader, options.brake) }
                }
                report(event)
            }
        case .direct(let memory):
            hotPages = nil
            keepOrder = nil
            self.report = report
            guest.update { $0 = memory.reader }
            direct = StreamSource.DirectPages(memory: memory, orders: DirectOrders())
        }
        for index in 0..<count {
            docks[index].offer(lanes.boxes[index], lanes.sockets[index], attempt: 0)
            let (queue, counter, dock) = (queues[index], counters[index], docks[index])
            _ = try WorkerThread("apus-send-\(index)", nice: WorkerThread.background) { [self] in
                guard let connection = dock.next()?.connection.take() else { return }
                var lane = SendLane(
                    index: index, of: count, connection, queue, counter, options, guest, dock,
                    linkLost: { [self] in loseLink($0) })
                do throws(FabricError) {
                    if let rest = try lane.run() { takeOver(lane.handedOver(), missing: rest, options) }
                } catch { fail(FlowFailure(error, lane: index)) }
                queue.close()
            }
        }
        switch port {
        case .stream(let socket): try connect(socket)
        case .direct(let memory): try startRounds(memory, options)
        }
    }

    private func takeOver(_ connection: consuming Connection, missing: PageSet, _ options: FlowOptions) {
        // Without a thread it is a connection that is lost, and another one is made.
        try? options.server?.takeOver(connection, missing: missing)
    }

    private func startRounds(_ memory: DirectMemory, _ options: FlowOptions) throws(SystemError) {
        guard let orders = direct?.orders else { return }
        _ = try WorkerThread("apus-direct") { [self] in
            var source = DirectSource(
                memory, queues, counters, own: directCounters, control, orders, roundCounters, options, report)
            do throws(FlowFailure) { try source.run() } catch { fail(error) }
        }
    }

    /// Starts to read QEMU's migration connection.
    public func connect(_ socket: Socket) throws(SystemError) {
        let isOver = over.read { $0 }
        qemu.update { $0 = socket }
        if isOver { return socket.shutDown() }
        _ = try WorkerThread("apus-source") { [self] in
            var source = StreamSource(
                socket, queues, control, readerCounters, direct: direct, hold: hotPages, keep: keepOrder, report)
            do throws(FlowFailure) { try source.run() } catch { fail(error) }
            for queue in queues { queue.queue.close() }
        }
    }

    /// The switch is near: from now on all pages travel as they are, and nobody looks at the guest any more.
    public func prepareSwitch() {
        references?.close()
        looks.end()
    }

    /// Stream port: looks at the guest's writing since the last call. How long ago they were is not told.
    public func takeLooks() -> [TimedLook] { looks.take() }

    /// QEMU, which sends pages that are dropped, is held no more: it stops the guest when little is left to it. Direct port.
    public func letQemuFinish() { direct?.orders.letQemuFinish() }

    /// What QEMU sends from now on stays here, to be fetched when the guest runs at the destination. Stream port.
    public func keepRest() { keepOrder?.give() }

    /// The guest is to move now; what has not travelled yet is fetched. Direct port, with ``FlowOptions/pull``.
    public func moveNow() { direct?.orders.moveNow() }

    /// Bytes of the return path for the source's QEMU.
    public func writeReturnPath(_ bytes: [UInt8]) throws(SystemError) { try qemu.read { $0 }?.write(bytes.rawBytes) }

    /// Tells the source's QEMU that the destination has everything: after this it never runs the guest again by itself.
    public func deliverShut() throws(SystemError) {
        var message = StreamBuffer()
        var writer = ReturnPathWriter()
        writer.write(.shut(failed: false), to: &message)
        try qemu.read { $0 }?.write(message.bytes)
    }

    /// Ends all threads. Unless SHUT was delivered, QEMU sees its socket close, fails the migration and lets the guest
    /// run on.
    public func stop() {
        over.update { $0 = true }
        direct?.orders.end()
        qemu.read { $0 }?.shutDown()
        endLanes()
    }

    private func endLanes() {
        control.end()
        looks.end()
        for queue in queues { queue.close() }
        for dock in docks { dock.end() }
    }

    // MARK: A lost connection

    /// Breaks what is left of all connections; the flow then stands still, and QEMU waits for it.
    public func hold() {
        // Whoever calls knows.
        loss.know()
        control.hold()
        for dock in docks { dock.clear() }
    }

    /// Goes on, on new connections, from what the destination has.
    ///
    /// - Throws: `FlowFailure` `peer` when it cannot be what was sent, `resume` when what is missing cannot be sent again.
    public func resume(
        at point: ResumePoint, control link: ControlLink, lanes: LaneConnections
    ) throws(FlowFailure) {
        guard point.framesApplied.count == docks.count, lanes.count == docks.count else {
            throw FlowFailure(
                "peer", "The destination tells of \(point.framesApplied.count) lanes; there are \(docks.count).")
        }
        try control.resume(point, link)
        let attempt = loss.begin()
        for (index, dock) in docks.enumerated() {
            dock.offer(
                lanes.boxes[index], lanes.sockets[index], attempt: attempt, applied: point.framesApplied[index])
            // A lane whose queue is full is awake.
            _ = queues[index].queue.sendIfRoom(.wake)
        }
    }

    private func loseLink(_ attempt: Int) {
        let isOver = over.read { $0 }
        if !isOver && loss.isNews(attempt) { report(.linkLost) }
    }

    /// The guest's memory, for when it has left; nil: only its QEMU can reach it.
    public var memoryImage: MemoryImage? { guest.read { $0 }?.image }

    public func sample() -> FlowSample {
        var sample = FlowSample()
        for counter in counters { sample.add(counter) }
        sample.wireBytes += control.bytesSent
        sample.cpuNs += readerCounters.cpuNs.now + directCounters.cpuNs.now
        sample.rounds = direct.map { roundCounters.sample($0.memory.layout) }
        sample.hold = hotPages?.counters.sample
        return sample
    }

    private func fail(_ failure: FlowFailure) {
        let first = over.update { over in
            defer { over = true }
            return !over
        }
        guard first else { return }
        report(.failed(failure))
        direct?.orders.end()
        endLanes()
    }
}

extension FlowFailure {
    fileprivate init(_ error: FabricError, lane: Int) {
        if case .unreadable(let page) = error {
            self.init(
                "resume",
                "Page \(page) was on its way when the connection was lost, and only QEMU can read it.")
        } else if case .auditFailed(let pages) = error {
            self.init(
                "verify",
                "\(pages) pages at the destination differ from the source's, although they were sent again \(SourceAudit.passes) times."
            )
        } else {
            self.init("link", "Lane \(lane) to the destination broke: \(error)")
        }
    }
}

/// Connected lanes on their way to their threads.
public final class LaneConnections: Sendable {
    let boxes: [OneShot<Connection>]
    let sockets: [Socket]
    public var count: Int { boxes.count }

    public init() {
        boxes = []
        sockets = []
    }

    private init(boxes: [OneShot<Connection>], sockets: [Socket]) {
        self.boxes = boxes
        self.sockets = sockets
    }

    public func adding(_ connection: consuming Connection) -> LaneConnections {
        let socket = connection.socket
        return LaneConnections(boxes: boxes + [OneShot(connection)], sockets: sockets + [socket])
    }
}
