public import ApusFabric
public import ApusMemory
public import ApusSystem
internal import ApusWire

/// The destination's half: from the lanes into the RAM of the QEMU that waits there.
public final class DestinationFlow: Sendable {
    private let feed: QemuFeed
    private let control: @Sendable (ControlLink.Message) -> Void
    private let isDirect: Bool
    private let ports: @Sendable (RAMBlock) -> BlockPort
    private let pull: PullDestination?
    private let references: DestinationReferences?
    /// Pages that the source keeps, as far as it has named them.
    private let announced = Monitor<PageSet?>(nil)
    private let state: DestinationState
    private let counters: [LaneCounters]
    private let docks: [LaneDock]
    private let loss = LossReport()
    private let inflow = Monitor(Inflow())
    private let report: @Sendable (DestinationFlowEvent) -> Void
    private let over = Monitor(false)
    private let fenceWait = Monitor<Double?>(nil)
    private let lastWrite = Monitor(Instant.now())
    private let usedPorts = Monitor<[String: String]>([:])

    /// The control connection as the flow knows it.
    private struct Inflow: Sendable {
        /// Frames of an earlier one are nobody's any more.
        var connection = 0
        var isBusy = false
        var streamBytes: UInt64 = 0
    }

    /// How long everything on its way in may take to come to rest.
    private static let restMs = 5_000.0

    /// Starts all threads; lanes are attached one by one.
    /// - Parameters:
    ///   - qemu: connected to the incoming socket of the destination QEMU.
    ///   - lanes: how many lanes will be attached.
    ///   - isDirect: the source sends RAM blocks that QEMU leaves out of its stream.
    ///   - pull: fetches what the source keeps; nil: it may keep nothing.
    ///   - references: where pages can be read that do not travel; nil: nowhere.
    ///   - ports: how to reach a RAM block.
    ///   - send: puts a frame on the control connection; may block.
    ///   - report: called from any of the flow's threads; must not block.
    public init(
        qemu: Socket, lanes: Int, isDirect: Bool = false, pull: PullDestination? = nil,
        references: DestinationReferences? = nil,
        ports: @escaping @Sendable (RAMBlock) -> BlockPort,
        send: @escaping @Sendable (ControlLink.Message) -> Void,
        report: @escaping @Sendable (DestinationFlowEvent) -> Void
    ) throws(SystemError) {
        feed = QemuFeed(qemu)
        control = send
        self.isDirect = isDirect
        self.pull = pull
        self.references = references
        self.ports = ports
        self.report = report
        state = DestinationState(lanes: lanes)
        counters = (0..<lanes).map { _ in LaneCounters() }
        docks = (0..<lanes).map { _ in LaneDock() }
        for index in 0..<lanes { try startLane(index) }
        _ = try WorkerThread("apus-return") { [self] in
            do throws(FlowFailure) { try readReturnPath() } catch { fail(error) }
        }
    }

    private func startLane(_ index: Int) throws(SystemError) {
        _ = try WorkerThread("apus-recv-\(index)", nice: WorkerThread.background) { [self] in
            guard let prologue = state.waitForPrologue(), let berth = docks[index].next(),
                let connection = berth.connection.take()
            else { return }
            var lane = ReceiveLane(
                index: index, of: counters.count, connection, counters[index], state, feed, docks[index],
                attempt: berth.attempt, pass: { [self] message throws(FlowFailure) in try pass(message) },
                linkLost: { [self] in loseLink($0) })
            do throws(FlowFailure) {
                if try lane.run(prologue, references) { try takeOver(lane.handedOver()) }
            } catch { fail(error) }
        }
    }

    private func takeOver(_ connection: consuming Connection) throws(FlowFailure) {
        guard let pull else { throw FlowFailure("peer", "The source keeps pages, which was not agreed.") }
        do throws(SystemError) { try pull.attach(connection, wasLane: true) } catch {
            throw FlowFailure("pager", "There is no thread for missing pages: \(error).")
        }
    }

    /// Gives a lane its connection, the first or the next.
    public func attach(_ connection: consuming Connection) {
        let index = Int(connection.hello.lane)
        precondition(index < counters.count)
        let socket = connection.socket
        docks[index].offer(OneShot(connection), socket, attempt: loss.attempt)
    }

    /// What lane 0 carries beside pages. Blocks until the fence it waits for is passed.
    private func pass(_ message: ControlLink.Message) throws(FlowFailure) {
        if message.kind == .residence { try learnResidence(message) } else { try writeStream(message) }
    }

    /// A stream or layout frame from the control connection, before any lane begins.
    ///
    /// - Parameter connection: 0 for the first, then what ``rest()`` gave; frames of another are dropped.
    public func receive(_ message: ControlLink.Message, on connection: Int = 0) {
        let isTaken = inflow.update { inflow in
            guard inflow.connection == connection else { return false }
            inflow.isBusy = true
            return true
        }
        guard isTaken else { return }
        defer { inflow.update { $0.isBusy = false } }
        do throws(FlowFailure) {
            switch message.kind {
            case .stream:
                try writeStream(message)
                inflow.update { $0.streamBytes += UInt64(message.bytes.count) }
            case .layout: try learnLayout(message)
            case .hello, .welcome, .refusal, .control, .returnPath, .batch, .fence, .credit, .want, .end, .residence,
                .handOver, .squeezedStream, .update, .patchable, .audit, .wanted, .reference, .referenceAnswer, .held:
                throw FlowFailure("peer", "The source sent a \(message.kind) frame on the control connection.")
            }
        } catch { fail(error) }
    }

    /// Drops what is on its way in and waits until nothing moves. What has arrived by then is what the source may count on.
    ///
    /// - Returns: that, and the number of the control connection to come. Lanes are attached anew.
    /// - Throws: `FlowFailure` `resume` when something does not come to an end.
    public func rest() throws(FlowFailure) -> (point: ResumePoint, connection: Int) {
        let connection = inflow.update { inflow in
            inflow.connection += 1
            return inflow.connection
        }
        // Whoever calls knows of the loss.
        loss.know()
        for dock in docks { dock.clear() }
        let deadline = Instant.now().adding(ms: Self.restMs)
        func left() -> Double { max(0, deadline.ms(since: Instant.now())) }
        var point = ResumePoint(layoutKnown: false)
        let streamBytes = inflow.wait(ms: left()) { $0.isBusy ? nil : $0.streamBytes }
        for dock in docks { if let frames = dock.waitUntilParked(ms: left()) { point.framesApplied.append(frames) } }
        guard let streamBytes, point.framesApplied.count == docks.count else {
            throw FlowFailure(
                "resume", "What came before the connection was lost was not finished in \(Int(Self.restMs / 1000)) s.")
        }
        point.streamBytes = streamBytes
        point.layoutKnown = state.hasPrologue
        _ = loss.begin()
        return (point, connection)
    }

    private func loseLink(_ attempt: Int) {
        let isOver = over.read { $0 }
        if !isOver && loss.isNews(attempt) { report(.linkLost) }
    }

    /// Ends all threads; the destination's QEMU sees its socket close.
    public func stop() {
        over.update { $0 = true }
        state.fail()
        feed.socket.shutDown()
        for dock in docks { dock.end() }
    }

    public func sample() -> FlowSample {
        var sample = FlowSample()
        for counter in counters { sample.add(counter) }
        return sample
    }

    /// How long the device state waited for the last pages; nil: it has not come.
    public var fenceMs: Double? { fenceWait.read { $0 } }
    /// Since QEMU was given something of its stream.
    public var sinceStreamMs: Double { Instant.now().ms(since: lastWrite.read { $0 }) }
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
        lastWrite.update { $0 = Instant.now() }
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

    /// The last that the source says of its memory: the rest stays there until it is fetched. From here on the lanes write
    /// nothing any more, so nothing older can come over what the guest will write.
    private func learnResidence(_ message: ControlLink.Message) throws(FlowFailure) {
        guard let pull, let ports = state.prologue?.ports(of: pull.layout), !state.isSealed else {
            throw FlowFailure("peer", "The source keeps pages, which was not agreed.")
        }
        guard state.waitForFence(message.epoch) else { return }
        var pages = announced.read { $0 } ?? PageSet(pageCount: pull.layout.pageCount)
        let isLast: Bool
        do throws(FrameError) { isLast = try ResidencePayload.take(message.bytes.rawBytes, into: &pages) } catch {
            throw FlowFailure("peer", "The source's list of pages that it keeps is not valid: \(error).")
        }
        announced.update { $0 = pages }
        guard isLast else { return }
        state.seal()
        try pull.flip(missing: pages, ports)
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
