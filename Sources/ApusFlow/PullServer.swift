internal import ApusCodec
public import ApusFabric
public import ApusMemory
public import ApusSystem
internal import ApusWire

/// The source of a VM that runs at its destination already: gives the pages that are still missing there.
///
/// ```
///   urgent connection   wanted: pages that somebody waits for ──▶ answered at once, from a thread of its own
///   push connection     residence: all that is missing       ──▶ sent in the order of ``PushOrder``, within a short window
/// ```
///
/// It keeps no account of what has arrived: the guest is stopped, so any page can be given any number of times, and the
/// destination says on every new connection what it lacks.
public final class PullServer: Sendable {
    private let reader: GuestReader
    /// Pages are in the memory of QEMU's process alone: they end with it.
    public let needsQemu: Bool
    private let bytesPerS: Double?
    private let counters = LaneCounters()
    private let report: @Sendable () -> Void
    private let order = Monitor<PushesDue?>(nil)
    private let mayPush = Latch()
    private let connections = PullConnections()

    /// What the two connections are called in their hello.
    public static let urgentLane: UInt16 = 0
    public static let pushLane: UInt16 = 1

    /// - Parameters:
    ///   - ports: the blocks of `layout`, in order: each mapped here, so that pages can be given even when QEMU has gone, or in
    ///     the memory of QEMU's process.
    ///   - bytesPerS: upper bound for what nobody waits for; nil: none.
    ///   - linkLost: a connection broke; called from any thread, must not block.
    public init(
        layout: Layout, ports: [BlockPort], bytesPerS: Double?, linkLost: @escaping @Sendable () -> Void
    ) {
        reader = GuestReader(layout, ports)
        needsQemu = !ports.allSatisfy { if case .mapped = $0 { true } else { false } }
        self.bytesPerS = bytesPerS
        report = linkLost
    }

    /// Takes one of the two connections; a former one of the same kind is dropped.
    public func attach(_ connection: consuming Connection) throws(SystemError) {
        let isUrgent = connection.hello.lane == Self.urgentLane
        try connections.begin(
            connection, isUrgent ? "apus-serve" : "apus-push", nice: isUrgent ? 0 : WorkerThread.background
        ) { [self] connection, isCurrent in
            // How it ends does not matter: without a connection nothing can be served, and another one is made.
            if isUrgent {
                var answers = PullAnswers(connection, reader, counters, order)
                try? answers.run()
            } else {
                var pushes = PullPushes(connection, reader, counters, order, bytesPerS)
                try? pushes.run(mayPush, isCurrent)
            }
            if isCurrent() { report() }
        }
    }

    /// Both connections stand.
    public var isConnected: Bool { connections.areBoth }

    /// The guest runs at the destination: what nobody waits for may travel too.
    public func startPushing() { mayPush.open() }

    /// Ends all connections, until new ones are attached.
    public func hold() {
        connections.end()
        order.update { $0 = nil }
    }

    /// For ever.
    public func stop() {
        hold()
        mayPush.open()
    }

    public func sample() -> FlowSample {
        var sample = FlowSample()
        sample.add(counters)
        return sample
    }
}

/// What is left to push, and on which connection: the thread of a broken one must not take pages out of it.
private struct PushesDue: Sendable {
    let owner: Socket
    var order: PushOrder
}

/// Sends batches of pages on one connection of a ``PullServer``.
private struct PullSender: ~Copyable {
    let reader: GuestReader
    let counters: LaneCounters
    var batch = Batch()

    init(_ reader: GuestReader, _ counters: LaneCounters) {
        self.reader = reader
        self.counters = counters
    }

    /// Adds as many pages of the run as there is room for; 0: the batch must be sent first.
    mutating func add(_ first: PageNumber, _ count: Int) throws(FabricError) -> Int {
        guard let index = reader.layout.block(of: first) else { throw .unreadable(page: first) }
        let startsBlock = reader.layout.blocks[index].firstPage == first
        var failure: SystemError?
        let added = batch.addRun(first, count: count, startsBlock: startsBlock) { buffer, at, pages in
            do throws(SystemError) { try reader.read(first: first, count: pages, into: &buffer, at: at) } catch {
                failure = error
            }
        }
        if let failure { throw .system(failure) }
        return added
    }

    static func transmit(
        _ sender: inout FrameSender, _ lane: UInt16, _ head: borrowing PageBuffer, _ batch: borrowing Batch,
        _ result: BatchEncoder.Result
    ) throws(FabricError) -> Int {
        try sender.send(
            .batch, lane: lane, head.bytes.extracting(0..<result.headBytes),
            batch.data.bytes.extracting(0..<result.rawBytes))
    }
}

/// The urgent connection: nothing is queued before an answer, and nothing is squeezed, which would cost time.
private struct PullAnswers: ~Copyable {
    private var sender: FrameSender
    private var receiver: FrameReceiver
    private var pages: PullSender
    private var encoder = BatchEncoder()
    private let order: Monitor<PushesDue?>

    init(
        _ connection: consuming Connection, _ reader: GuestReader, _ counters: LaneCounters,
        _ order: Monitor<PushesDue?>
    ) {
        sender = connection.sender
        receiver = connection.receiver
        pages = PullSender(reader, counters)
        self.order = order
    }

    mutating func run() throws(FabricError) {
        while let frame = try receiver.receive() {
            guard frame.kind == .wanted else { throw .frame(.unexpectedKind(frame.kind)) }
            for index in 0..<(try runCount()) {
                let run = try run(at: index)
                // The touched page comes first, and does not wait for its neighbours.
                try answer(run.first, run.count)
                order.update { order in
                    if index == 0 { order?.order.faulted(at: run.first) }
                    order?.order.remove(first: run.first, count: run.count)
                }
            }
        }
    }

    private func runCount() throws(FabricError) -> Int {
        do throws(FrameError) { return try WantedPayload.runCount(receiver.payload) } catch { throw .frame(error) }
    }

    private func run(at index: Int) throws(FabricError) -> (first: PageNumber, count: Int) {
        do throws(FrameError) {
            return try WantedPayload.run(receiver.payload, at: index, of: pages.reader.layout)
        } catch { throw .frame(error) }
    }

    private mutating func answer(_ first: PageNumber, _ count: Int) throws(FabricError) {
        _ = try pages.add(first, count)
        let result = encoder.encode(&pages.batch, .raw)
        let bytes = try PullSender.transmit(&sender, PullServer.urgentLane, encoder.head, pages.batch, result)
        pages.counters.wireBytes.add(bytes)
        pages.counters.confirmedBytes.add(bytes)
        pages.counters.count(result)
        pages.batch.reset()
    }
}

/// The push connection. Little is in flight at a time: what somebody waits for shares the link.
private struct PullPushes: ~Copyable {
    private var sender: FrameSender
    private var receiver: FrameReceiver
    private var pages: PullSender
    private var encoder: LaneEncoder
    private var meter: LinkMeter
    private var pacer: Pacer
    private let order: Monitor<PushesDue?>
    private var sentBytes: UInt64 = 0
    private var creditedBytes: UInt64 = 0

    /// How much of the link's time may be in flight.
    private static let windowNs = 3_000_000.0
    private static let windowBytesMin = 192.0 * 1024
    /// As for a lane.
    private static let assumedBytesPerNs = 0.125

    init(
        _ connection: consuming Connection, _ reader: GuestReader, _ counters: LaneCounters,
        _ order: Monitor<PushesDue?>, _ bytesPerS: Double?
    ) {
        let squeezes = connection.features.isSuperset(of: [.lz4, .zstd])
        sender = connection.sender
        receiver = connection.receiver
        pages = PullSender(reader, counters)
        encoder = LaneEncoder(
            LaneShare(lane: 0, lanes: 1), .init(squeezes: squeezes, lineBytes: nil, tableBytesMax: 0),
            cpuNs: Instant.threadCPUNs)
        meter = LinkMeter(nowNs: Instant.now().ns, assumedBytesPerNs: Self.assumedBytesPerNs)
        pacer = Pacer(bytesPerS: bytesPerS)
        self.order = order
    }

    mutating func run(_ mayPush: Latch, _ isCurrent: () -> Bool) throws(FabricError) {
        let due = try learnMissing()
        let socket = sender.socket
        order.update { if isCurrent() { $0 = PushesDue(owner: socket, order: PushOrder(due)) } }
        mayPush.wait()
        while let run = order.update({ $0?.owner === socket ? $0?.order.next() : nil }) {
            // A stripe may hold the end of one block and the beginning of the next.
            var page = run.first
            let end = run.first + PageNumber(run.count)
            while page < end {
                guard let index = pages.reader.layout.block(of: page) else { throw .unreadable(page: page) }
                let block = pages.reader.layout.blocks[index]
                let part = Int(min(end, block.firstPage + block.pageCount) - page)
                let added = try pages.add(page, part)
                page += PageNumber(added)
                if added < part || pages.batch.hasNoRoomForData() { try send() }
            }
        }
        try send()
        // Until the destination says on the control connection that it is whole, this one stays.
        while try receiver.receive() != nil {}
    }

    private mutating func learnMissing() throws(FabricError) -> PageSet {
        var missing = PageSet(pageCount: pages.reader.layout.pageCount)
        while true {
            guard let frame = try receiver.receive() else { throw .closed }
            guard frame.kind == .residence else { throw .frame(.unexpectedKind(frame.kind)) }
            do throws(FrameError) {
                if try ResidencePayload.take(receiver.payload, into: &missing) { return missing }
            } catch { throw .frame(error) }
        }
    }

    private mutating func send() throws(FabricError) {
        guard pages.batch.hasRecords() else { return }
        while let frame = encoder.next(&pages.batch, linkBytesPerNs: meter.bytesPerNs, nowNs: Instant.now().ns) {
            guard case .pages(let result) = frame else { continue }
            let startNs = try waitForLink(FrameHeader.byteCount + result.headBytes + result.rawBytes)
            let bytes = try PullSender.transmit(
                &sender, PullServer.pushLane, encoder.pages.head, pages.batch, result)
            let nowNs = Instant.now().ns
            if nowNs - startNs > 1_000_000 { meter.waited(ns: nowNs - startNs) }
            meter.tick(nowNs: nowNs)
            sentBytes += UInt64(bytes)
            pages.counters.wireBytes.add(bytes)
            pages.counters.count(result)
            pages.counters.cpuNs.set(Instant.threadCPUNs())
        }
        pages.batch.reset()
    }

    private mutating func waitForLink(_ length: Int) throws(FabricError) -> UInt64 {
        while try receiver.receiveIfAny() != nil { try takeCredit() }
        let window = UInt64(max(meter.bytesPerNs * Self.windowNs, Self.windowBytesMin))
        while !encoder.flight.hasRoom
            || (sentBytes > creditedBytes && sentBytes - creditedBytes + UInt64(length) > window)
        {
            let startNs = Instant.now().ns
            guard try receiver.receive() != nil else { throw .closed }
            try takeCredit()
            meter.waited(ns: Instant.now().ns - startNs)
        }
        let delayNs = pacer.delayNs(for: length, nowNs: Instant.now().ns)
        if delayNs > 0 {
            pause(ms: Double(delayNs) / 1e6)
            meter.waited(ns: delayNs)
        }
        return Instant.now().ns
    }

    private mutating func takeCredit() throws(FabricError) {
        guard receiver.payload.byteCount == 16 else {
            throw .frame(.wrongLength(kind: .credit, length: receiver.payload.byteCount))
        }
        let bytes = receiver.payload.littleEndian(at: 0, as: UInt64.self)
        guard bytes >= creditedBytes, bytes <= sentBytes,
            encoder.confirm(upTo: receiver.payload.littleEndian(at: 8, as: UInt64.self))
        else { throw .frame(.badPayload(.credit, "\(bytes) bytes of \(sentBytes) sent")) }
        meter.credited(bytes - creditedBytes)
        creditedBytes = bytes
        pages.counters.linkBytesPerS.set(UInt64(meter.bytesPerNs * 1e9))
    }
}
