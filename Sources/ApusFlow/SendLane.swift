internal import ApusCodec
internal import ApusFabric
internal import ApusMemory
internal import ApusSystem
internal import ApusWire

/// What travels down a lane's queue.
enum LaneItem: ~Copyable, Sendable {
    case batch(Batch)
    /// Everything before it is older than this epoch.
    case fence(UInt32)
    /// What belongs between pages: pieces of QEMU's stream, and which pages stay.
    case message(ControlLink.Message)
    /// The guest is stopped, and these pages follow it: the lane's connection is for them from here on.
    case handOver(PageSet)
    /// Look at the dock, for there may be a new connection, and for credits.
    case wake
}

/// The queue of one lane and the batches that circulate through it.
///
/// ```
///   port -- filled --> [queue] --> lane thread --> link
///     ^------------- [pool] <-- emptied ---'
/// ```
/// A port that finds the pool empty waits: that is how a slow link holds QEMU back.
final class LaneQueue: Sendable {
    let queue = BoundedQueue<LaneItem>(capacity: Limits.batchesPerLane + 2)
    let pool = BoundedQueue<Batch>(capacity: Limits.batchesPerLane + 1)
    /// Batches filled and not yet sent.
    var backlog: Int { Limits.batchesPerLane - pool.depth }

    init() { for _ in 0..<Limits.batchesPerLane { _ = pool.send(Batch()) } }

    func close() {
        queue.close()
        pool.close()
    }
}

/// The sending half of a lane: takes batches, sends the frames that they make, keeps within the window that the
/// receiver's credits leave. Runs on its own thread; owns everything it touches.
struct SendLane: ~Copyable, Sendable {
    let index: UInt16
    let lanes: LaneQueue
    let counters: LaneCounters
    private let dock: LaneDock
    let guest: Monitor<GuestReader?>
    private let linkLost: @Sendable (Int) -> Void
    private var attempt = 0
    var sender: FrameSender
    var receiver: FrameReceiver
    var encoder: LaneEncoder
    var references: OutgoingReferences
    /// Pages that the receiver could not get elsewhere, until they are sent.
    var refused: PageSet?
    var meter: LinkMeter
    private var pacer: Pacer
    var sentBytes: UInt64 = 0
    var creditedBytes: UInt64 = 0
    /// Bytes that went to former connections.
    var bytesBefore: UInt64 = 0
    /// What was on its way when a connection was lost, until it is sent again.
    var lost: PageSet?
    var lostBatch: Batch?
    var passage = Passage()
    var features: Features
    /// The last fence.
    private var fence: UInt32?
    var linesMayCome: Bool
    /// What the receiver can change, and therefore read.
    var patchable = PageRanges()
    var audit: SourceAudit
    let verifies: Bool

    /// Share of a 1 Gb/s link that is assumed before anything is measured.
    private static let linkBytesPerNs = 0.125
    let assumedBytesPerNs: Double
    /// How much of the link's time may be in flight: long enough to keep it busy, short enough for a quick switch.
    private static let windowNs = 20_000_000.0
    /// What may be in flight on a lane of this rate.
    static func windowBytes(bytesPerNs: Double) -> Double {
        min(max(bytesPerNs * windowNs, Double(Limits.windowBytesMin)), Double(Limits.windowBytesMax))
    }

    init(
        index: Int, of count: Int, _ connection: consuming Connection, _ lanes: LaneQueue, _ counters: LaneCounters,
        _ options: FlowOptions, _ guest: Monitor<GuestReader?>, _ dock: LaneDock,
        linkLost: @escaping @Sendable (Int) -> Void
    ) {
        self.guest = guest
        self.dock = dock
        self.linkLost = linkLost
        audit = SourceAudit(LaneShare(lane: index, lanes: count), guest)
        verifies = options.verifies
        self.index = UInt16(index)
        self.lanes = lanes
        self.counters = counters
        features = connection.features
        sender = connection.sender
        receiver = connection.receiver
        linesMayCome = features.contains(.lines)
        encoder = LaneEncoder(
            LaneShare(lane: index, lanes: count),
            .init(
                squeezes: features.isSuperset(of: [.lz4, .zstd]), lineBytes: linesMayCome ? options.lineBytes : nil,
                tableBytesMax: options.lineTableBytesMax / count),
            cpuNs: Instant.threadCPUNs)
        references = OutgoingReferences(options.references)
        assumedBytesPerNs = Self.linkBytesPerNs / Double(count)
        meter = LinkMeter(nowNs: Instant.now().ns, assumedBytesPerNs: assumedBytesPerNs)
        pacer = Pacer(bytesPerS: options.bytesPerS.map { $0 / Double(count) })
    }

    /// Runs until the queue is closed and empty, or the lane is handed over. However often its connection is lost, it waits
    /// for the next one and goes on; meanwhile the queue fills, and holds the port back.
    ///
    /// - Returns: the pages that its connection is for now; nil: it is done.
    mutating func run() throws(FabricError) -> PageSet? {
        while true {
            do throws(FabricError) { return try work() } catch {
                guard error.isLoss else { throw error }
                linkLost(attempt)
                guard let berth = dock.next(), let connection = berth.connection.take() else { throw .closed }
                attempt = berth.attempt
                try adopt(connection, applied: berth.applied)
            }
        }
    }

    private mutating func work() throws(FabricError) -> PageSet? {
        try sendLost()
        if let fence { try pass(fence) }
        try passDue()
        while let item = try receive() {
            switch consume item {
            case .batch(var batch):
                do throws(FabricError) { try send(&batch) } catch {
                    // What became of it is not known; its pages are read again.
                    for index in 0..<batch.recordCount {
                        Self.lose(&lost, guest, batch.records[index].first, Int(batch.records[index].count))
                    }
                    batch.reset()
                    _ = lanes.pool.send(batch)
                    throw error
                }
                batch.reset()
                _ = lanes.pool.send(batch)
            case .fence(let epoch):
                fence = epoch
                try pass(epoch)
            case .message(let message):
                passage.add(message)
                try passDue()
            case .handOver(let rest):
                try flush()
                account(bytes: try sender.send(.handOver, lane: index))
                dock.leave()
                return rest
            case .wake:
                if dock.isOffered { throw .closed }
                try collectCredits()
            }
            counters.cpuNs.set(Instant.threadCPUNs())
        }
        try flush()
        try sender.send(.end, lane: index)
        return nil
    }

    /// The connection as it is for pages that follow the guest.
    consuming func handedOver() -> Connection {
        Connection(
            sender: sender, receiver: receiver, hello: Hello(role: .urgent, lane: PullServer.pushLane, lanes: 2),
            features: features)
    }

    private mutating func pass(_ epoch: UInt32) throws(FabricError) {
        try flush()
        try settleReferences()
        try verify()
        account(bytes: try sender.send(.fence, lane: index, epoch: epoch))
    }

    /// The next item. Lines that wait for more of them go when nothing comes in time.
    private mutating func receive() throws(FabricError) -> LaneItem? {
        while references.isWaiting() || refused != nil {
            try sendRefused()
            if lanes.queue.isReady(withinMs: Self.answerPollMs) { break }
            try collectCredits()
            try giveUpIfSilent()
            if let dueNs = encoder.dueNs, dueNs <= Instant.now().ns { try flush() }
        }
        if let dueNs = encoder.dueNs {
            let ms = max(0, Instant(ns: dueNs).ms(since: Instant.now()))
            if !lanes.queue.isReady(withinMs: ms) { try flush() }
        }
        return lanes.queue.receive()
    }

    /// - Parameter literally: not as references, whatever is found elsewhere.
    mutating func send(_ batch: inout Batch, literally: Bool = false) throws(FabricError) {
        if !literally { try sendReferences(&batch) }
        while true {
            try waitForRoom()
            let nowNs = Instant.now().ns
            guard let frame = encoder.next(&batch, linkBytesPerNs: meter.bytesPerNs, nowNs: nowNs) else { break }
            switch frame {
            case .pages(let result):
                let startNs = try waitForLink(result.headBytes + result.rawBytes)
                let bytes = try Self.transmit(
                    &sender, .batch, lane: index, encoder.pages.head, result.headBytes, batch.data, result.rawBytes)
                account(bytes: bytes, since: startNs)
                counters.count(result)
            case .updates(let result):
                try send(result)
            }
        }
        countLines()
    }

    mutating func flush() throws(FabricError) {
        try waitForRoom()
        if let result = encoder.flush(linkBytesPerNs: meter.bytesPerNs) { try send(result) }
        countLines()
    }

    mutating func send(_ result: UpdateEncoder.Result) throws(FabricError) {
        let startNs = try waitForLink(result.byteCount)
        let bytes = try Self.transmit(
            &sender, .update, lane: index, encoder.updates.head, result.headBytes, encoder.updates.lines,
            result.rawBytes)
        account(bytes: bytes, since: startNs)
        counters.lineBytes.add(bytes)
    }

    private static func transmit(
        _ sender: inout FrameSender, _ kind: FrameKind, lane: UInt16, _ head: borrowing PageBuffer, _ headBytes: Int,
        _ body: borrowing PageBuffer, _ bodyBytes: Int
    ) throws(FabricError) -> Int {
        try sender.send(
            kind, lane: lane, head.bytes.extracting(0..<headBytes), body.bytes.extracting(0..<bodyBytes))
    }

    /// Waits until another frame may be in flight.
    mutating func waitForRoom() throws(FabricError) {
        try collectCredits()
        while !encoder.flight.hasRoom { try waitForCredit() }
    }

    /// Waits until a payload of this length may go; returns the time.
    mutating func waitForLink(_ length: Int) throws(FabricError) -> UInt64 {
        let length = FrameHeader.byteCount + length
        try collectCredits()
        let window = UInt64(Self.windowBytes(bytesPerNs: meter.bytesPerNs))
        while sentBytes - creditedBytes > 0 && sentBytes - creditedBytes + UInt64(length) > window {
            try waitForCredit()
        }
        let delayNs = pacer.delayNs(for: length, nowNs: Instant.now().ns)
        if delayNs > 0 {
            pause(ms: Double(delayNs) / 1e6)
            meter.waited(ns: delayNs)
        }
        return Instant.now().ns
    }

    mutating func waitForCredit() throws(FabricError) {
        let startNs = Instant.now().ns
        guard let frame = try receiver.receive() else { throw .closed }
        try take(frame)
        meter.waited(ns: Instant.now().ns - startNs)
    }

    mutating func collectCredits() throws(FabricError) {
        while let frame = try receiver.receiveIfAny() { try take(frame) }
    }

    mutating func take(_ frame: FrameHeader) throws(FabricError) {
        switch frame.kind {
        case .credit:
            try credit(frame)
        case .patchable where linesMayCome:
            linesMayCome = false
            do throws(FrameError) { patchable = try PatchablePayload.pages(receiver.payload) } catch {
                throw .frame(error)
            }
            encoder.mayPatch(patchable)
        case .referenceAnswer where references.isOn():
            try takeAnswer()
        case .want where audit.isWaiting():
            guard frame.length == WantPayload.byteCount else {
                throw .frame(.wrongLength(kind: .want, length: frame.length))
            }
            audit.answered(receiver.payload.littleEndian(at: 0))
        default:
            throw .frame(.unexpectedKind(frame.kind))
        }
    }

    private mutating func credit(_ frame: FrameHeader) throws(FabricError) {
        guard frame.length == 16 else { throw .frame(.wrongLength(kind: .credit, length: frame.length)) }
        let bytes = receiver.payload.littleEndian(at: 0, as: UInt64.self)
        let frames = receiver.payload.littleEndian(at: 8, as: UInt64.self)
        guard bytes >= creditedBytes, bytes <= sentBytes, encoder.confirm(upTo: frames) else {
            throw .frame(.badPayload(.credit, "\(bytes) bytes of \(sentBytes) sent"))
        }
        passage.confirm(upTo: frames)
        meter.credited(bytes - creditedBytes)
        creditedBytes = bytes
        counters.confirmedBytes.set(bytesBefore + bytes)
        counters.linkBytesPerS.set(UInt64(meter.bytesPerNs * 1e9))
    }

    private mutating func account(bytes: Int, since startNs: UInt64) {
        let nowNs = Instant.now().ns
        // A send that takes much longer than copying into the socket has waited for the link.
        if nowNs - startNs > 1_000_000 { meter.waited(ns: nowNs - startNs) }
        meter.tick(nowNs: nowNs)
        account(bytes: bytes)
    }

    mutating func account(bytes: Int) {
        sentBytes += UInt64(bytes)
        counters.wireBytes.add(bytes)
    }

    /// How long answers to references are left alone while there is nothing to send.
    private static let answerPollMs = 1.0

    private func countLines() {
        counters.samePages.set(UInt64(encoder.filtered.samePages))
        counters.linePages.set(UInt64(encoder.filtered.linePages))
        counters.changedLines.set(UInt64(encoder.filtered.lines))
        counters.lineTableBytes.set(UInt64(encoder.tableBytes))
    }
}
