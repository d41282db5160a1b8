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
//                  |                                                                      ^
//                  `==> ControlLink ======== stream frames, layout ========> control =====' after the fence
//   QEMU <== return path <== ControlLink <========= return path ============ reader <==== QEMU
//
// Every box with an arrow into it is one thread. Nothing here knows QMP, jobs or decisions: that is ApusControl's.

/// What a source flow tells its session.
public enum SourceFlowEvent: Sendable, Equatable {
    case layoutKnown(Layout)
    /// Direct port: what is left fits the pause. QEMU is to be told to migrate; see ``SourceFlow/connect(_:)``.
    case converged(predictedDowntimeMs: Double)
    /// QEMU has stopped the guest and sends the last pages.
    case lastRoundBegan
    /// QEMU has closed the migration socket in good order, or its stream is complete.
    case streamEnded
    /// The flow is over; nothing more comes. The first failure only.
    case failed(FlowFailure)
}

/// What a destination flow tells its session.
public enum DestinationFlowEvent: Sendable, Equatable {
    /// The destination's QEMU has loaded everything and said so (SHUT 0).
    case loaded
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
    /// Compare all pages by digest before the switch, and send again what differs. Prolongs the pause.
    public var verifies = false
    public init(bytesPerS: Double? = nil, maxDowntimeMs: Double = 300) {
        self.bytesPerS = bytesPerS
        self.maxDowntimeMs = maxDowntimeMs
    }
}

/// Where a source's pages come from.
public enum SourcePort: Sendable {
    /// QEMU's migration stream: the accepted connection of the source QEMU.
    case stream(Socket)
    /// Guest RAM itself. QEMU connects when the flow says that it has converged.
    case direct(DirectMemory)
}

/// The source's half: from the VM's memory to the lanes.
public final class SourceFlow: Sendable {
    /// nil: it has not connected yet.
    private let qemu = Monitor<Socket?>(nil)
    private let direct: StreamSource.DirectPages?
    private let roundCounters = RoundCounters()
    private let control: ControlLink
    private let queues: [LaneQueue]
    private let counters: [LaneCounters]
    private let readerCounters = LaneCounters()
    private let directCounters = LaneCounters()
    private let laneSockets: [Socket]
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
        self.control = control
        let guest = Monitor<GuestReader?>(nil)
        self.guest = guest
        let count = lanes.count
        queues = (0..<count).map { _ in LaneQueue() }
        counters = (0..<count).map { _ in LaneCounters() }
        laneSockets = lanes.sockets
        switch port {
        case .stream:
            direct = nil
            self.report = { event in
                if case .layoutKnown(let layout) = event {
                    let reader = GuestReader(layout, layout.blocks.map(memory))
                    guest.update { $0 = reader }
                }
                report(event)
            }
        case .direct(let memory):
            self.report = report
            guest.update { $0 = memory.reader }
            direct = StreamSource.DirectPages(memory: memory, orders: DirectOrders())
        }
        for index in 0..<count {
            let (queue, counter) = (queues[index], counters[index])
            _ = try WorkerThread("apus-send-\(index)", nice: WorkerThread.background) { [self] in
                guard let connection = lanes.take(index) else { return }
                var lane = SendLane(
                    index: index, of: count, connection, queue, counter, options, guest)
                do throws(FabricError) { try lane.run() } catch { fail(FlowFailure(error, lane: index)) }
                queue.close()
            }
        }
        switch port {
        case .stream(let socket): try connect(socket)
        case .direct(let memory): try startRounds(memory, options)
        }
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
            var source = StreamSource(socket, queues, control, readerCounters, direct: direct, report)
            do throws(FlowFailure) { try source.run() } catch { fail(error) }
            for queue in queues { queue.queue.close() }
        }
    }

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
        for queue in queues { queue.close() }
        for socket in laneSockets { socket.shutDown() }
    }

    public func sample() -> FlowSample {
        var sample = FlowSample()
        for counter in counters { sample.add(counter) }
        sample.wireBytes += control.bytesSent
        sample.cpuNs += readerCounters.cpuNs.now + directCounters.cpuNs.now
        sample.rounds = direct.map { roundCounters.sample($0.memory.layout) }
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
        for queue in queues { queue.close() }
        for socket in laneSockets { socket.shutDown() }
    }
}

extension FlowFailure {
    fileprivate init(_ error: FabricError, lane: Int) {
        if case .auditFailed(let pages) = error {
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
    private let boxes: [OneShot<Connection>]
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

    func take(_ index: Int) -> Connection? { boxes[index].take() }
}

/// The destination's half: from the lanes into the RAM of the QEMU that waits there.
public final class DestinationFlow: Sendable {
    private let feed: QemuFeed
    private let control: @Sendable (ControlLink.Message) -> Void
    private let isDirect: Bool
    private let ports: @Sendable (RAMBlock) -> BlockPort
    private let state: DestinationState
    private let counters: [LaneCounters]
    private let laneSockets = Monitor<[Socket]>([])
    private let report: @Sendable (DestinationFlowEvent) -> Void
    private let over = Monitor(false)
    private let fenceWait = Monitor<Double?>(nil)
    private let usedPorts = Monitor<[String: String]>([:])

    /// Starts the return path's thread; lanes are attached one by one.
    /// - Parameters:
    ///   - qemu: connected to the incoming socket of the destination QEMU.
    ///   - lanes: how many lanes will be attached.
    ///   - isDirect: the source sends RAM blocks that QEMU leaves out of its stream.
    ///   - ports: how to reach a RAM block.
    ///   - send: puts a frame on the control connection; may block.
    ///   - report: called from any of the flow's threads; must not block.
    public init(
        qemu: Socket, lanes: Int, isDirect: Bool = false, ports: @escaping @Sendable (RAMBlock) -> BlockPort,
        send: @escaping @Sendable (ControlLink.Message) -> Void,
        report: @escaping @Sendable (DestinationFlowEvent) -> Void
    ) throws(SystemError) {
        feed = QemuFeed(qemu)
        control = send
        self.isDirect = isDirect
        self.ports = ports
        self.report = report
        state = DestinationState(lanes: lanes)
        counters = (0..<lanes).map { _ in LaneCounters() }
        _ = try WorkerThread("apus-return") { [self] in
            do throws(FlowFailure) { try readReturnPath() } catch { fail(error) }
        }
    }

    /// Starts a lane on its connection.
    public func attach(_ connection: consuming Connection) throws(SystemError) {
        let index = Int(connection.hello.lane)
        precondition(index < counters.count)
        let socket = connection.socket
        laneSockets.update { $0.append(socket) }
        let box = OneShot(connection)
        _ = try WorkerThread("apus-recv-\(index)", nice: WorkerThread.background) { [self] in
            guard let connection = box.take() else { return }
            var lane = ReceiveLane(
                index: index, of: counters.count, connection, counters[index], state, feed)
            do throws(FlowFailure) { try lane.run() } catch { fail(error) }
        }
    }

    /// A stream or layout frame from the control connection. Blocks until the fence it waits for is passed.
    public func receive(_ message: ControlLink.Message) {
        do throws(FlowFailure) {
            switch message.kind {
            case .stream: try writeStream(message)
            case .layout: try learnLayout(message)
            case .hello, .welcome, .refusal, .control, .returnPath, .batch, .fence, .credit, .want, .end,
                .squeezedStream, .update, .patchable, .audit:
                throw FlowFailure("peer", "The source sent a \(message.kind) frame on the control connection.")
            }
        } catch { fail(error) }
    }

    /// Ends all threads; the destination's QEMU sees its socket close.
    public func stop() {
        over.update { $0 = true }
        state.fail()
        feed.socket.shutDown()
        for socket in laneSockets.read({ $0 }) { socket.shutDown() }
    }

    public func sample() -> FlowSample {
        var sample = FlowSample()
        for counter in counters { sample.add(counter) }
        return sample
    }

    /// How long the device state waited for the last pages; nil: it has not come.
    public var fenceMs: Double? { fenceWait.read { $0 } }
    /// How each RAM block was filled: name -> `mapped`, `process`, `stream`.
    public var installed: [String: String] { usedPorts.read { $0 } }

    private func writeStream(_ message: ControlLink.Message) throws(FlowFailure) {
        if message.epoch > 0 {
            let began = Instant.now()
            guard state.waitForFence(message.epoch) else { return }
            fenceWait.update { $0 = $0 ?? Instant.now().ms(since: began) }
        }
        do throws(SystemError) { try feed.write(message.bytes.rawBytes) } catch {
            throw FlowFailure("qemu-load", "The destination QEMU has closed its migration socket: \(error).")
        }
    }

    private func learnLayout(_ message: ControlLink.Message) throws(FlowFailure) {
        let layout: Layout
        do throws(FrameError) { layout = try LayoutPayload.layout(message.bytes.rawBytes) } catch {
            throw FlowFailure("peer", "The source sent RAM blocks that are not valid: \(error).")
        }
        let table: RamBlockTable
        do throws(StreamError) {
            table = try RamBlockTable(layout.blocks.map { RamBlock(name: $0.name, usedLength: $0.byteCount) })
        } catch { throw FlowFailure("peer", "The source sent RAM blocks that are not valid: \(error)") }
        let chosen = layout.blocks.map(ports)
        if isDirect { try empty(layout, chosen) }
        usedPorts.update { used in
            for (block, port) in zip(layout.blocks, chosen) { used[block.name] = port.name }
        }
        state.begin(.init(layout: layout, table: table, ports: chosen, ramSection: message.epoch))
    }

    /// A direct source sends no page that is zero from the beginning: what firmware has put there must go.
    private func empty(_ layout: Layout, _ ports: [BlockPort]) throws(FlowFailure) {
        for (block, port) in zip(layout.blocks, ports) {
            guard case .mapped(let window) = port else {
                throw FlowFailure("install", "RAM block \(block.name) is not a shared file on this host.")
            }
            try wrap("install") { () throws(SystemError) in try window.punch() }
        }
    }

    private func readReturnPath() throws(FlowFailure) {
        var buffer = PageBuffer(byteCount: 64 << 10)
        var reader = ReturnPathReader()
        var held = 0
        while true {
            let count = try wrap("qemu-load") { () throws(SystemError) in
                try feed.socket.read(into: &buffer, held..<buffer.byteCount)
            }
            guard count > 0 else {
                throw FlowFailure("qemu-load", "The destination QEMU has closed its migration socket.")
            }
            held += count
            var at = 0
            while at < held {
                let step: ReturnPathReader.Step
                do throws(StreamError) { step = try reader.next(buffer.bytes.extracting(at..<held)) } catch {
                    throw FlowFailure("qemu-load", "The return path of the destination QEMU is not valid: \(error)")
                }
                guard case .element(let element, let length) = step else { break }
                if case .shut(let failed) = element {
                    guard !failed else {
                        throw FlowFailure("qemu-load", "The destination QEMU could not load the VM.")
                    }
                    return report(.loaded)
                }
                control(.init(.returnPath, buffer.bytes.extracting(at..<at + length).bytesCopied))
                at += length
            }
            buffer.copyWithin(from: at, to: 0, held - at)
            held -= at
        }
    }

    private func fail(_ failure: FlowFailure) {
        let first = over.update { over in
            defer { over = true }
            return !over
        }
        guard first else { return }
        state.fail()
        report(.failed(failure))
    }
}
