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
    /// Look at the dock: there may be a new connection.
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
    private let index: UInt16
    private let lanes: LaneQueue
    private let counters: LaneCounters
    private let dock: LaneDock
    private let guest: Monitor<GuestReader?>
    private let linkLost: @Sendable (Int) -> Void
    private var attempt = 0
    private var sender: FrameSender
    private var receiver: FrameReceiver
    private var encoder: LaneEncoder
    private var meter: LinkMeter
    private var pacer: Pacer
    private var sentBytes: UInt64 = 0
    private var creditedBytes: UInt64 = 0
    /// Bytes that went to former connections.
    private var bytesBefore: UInt64 = 0
    /// What was on its way when a connection was lost, until it is sent again.
    private var lost: PageSet?
    private var lostBatch: Batch?
    /// The last fence.
    private var fence: UInt32?
    private var linesMayCome: Bool
    /// What the receiver can change, and therefore read.
    private var patchable = PageRanges()
    private var audit: SourceAudit
    private let verifies: Bool

    /// Share of a 1 Gb/s link that is assumed before anything is measured.
    private static let assumedBytesPerNs = 0.125
    /// How much of the link's time may be in flight: long enough to keep it busy, short enough for a quick switch.
    private static let windowNs = 20_000_000.0

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
        let features = connection.features
        sender = connection.sender
        receiver = connection.receiver
        linesMayCome = features.contains(.lines)
        encoder = LaneEncoder(
            LaneShare(lane: index, lanes: count),
            .init(
                squeezes: features.isSuperset(of: [.lz4, .zstd]), lineBytes: linesMayCome ? options.lineBytes : nil,
                tableBytesMax: options.lineTableBytesMax / count),
            cpuNs: Instant.threadCPUNs)
        meter = LinkMeter(nowNs: Instant.now().ns, assumedBytesPerNs: Self.assumedBytesPerNs / Double(count))
        pacer = Pacer(bytesPerS: options.bytesPerS.map { $0 / Double(count) })
    }

    /// Runs until the queue is closed and empty. However often its connection is lost, it waits for the next one and goes
    /// on; meanwhile the queue fills, and holds the port back.
    mutating func run() throws(FabricError) {
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

    private mutating func work() throws(FabricError) {
        try sendLost()
        if let fence { try pass(fence) }
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
            case .wake:
                if dock.isOffered { throw .closed }
            }
            counters.cpuNs.set(Instant.threadCPUNs())
        }
        try flush()
        try sender.send(.end, lane: index)
    }

    private mutating func pass(_ epoch: UInt32) throws(FabricError) {
        try flush()
        try verify()
        account(bytes: try sender.send(.fence, lane: index, epoch: epoch))
    }

    /// The next item. Lines that wait for more of them go when nothing comes in time.
    private mutating func receive() throws(FabricError) -> LaneItem? {
        if let dueNs = encoder.dueNs {
            let ms = max(0, Instant(ns: dueNs).ms(since: Instant.now()))
            if !lanes.queue.isReady(withinMs: ms) { try flush() }
        }
        return lanes.queue.receive()
    }

    private mutating func send(_ batch: inout Batch) throws(FabricError) {
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

    private mutating func flush() throws(FabricError) {
        try waitForRoom()
        if let result = encoder.flush(linkBytesPerNs: meter.bytesPerNs) { try send(result) }
        countLines()
    }

    private mutating func send(_ result: UpdateEncoder.Result) throws(FabricError) {
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
    private mutating func waitForRoom() throws(FabricError) {
        try collectCredits()
        while !encoder.flight.hasRoom { try waitForCredit() }
    }

    /// Waits until a payload of this length may go; returns the time.
    private mutating func waitForLink(_ length: Int) throws(FabricError) -> UInt64 {
        let length = FrameHeader.byteCount + length
        try collectCredits()
        let window = UInt64(
            min(
                max(meter.bytesPerNs * Self.windowNs, Double(Limits.windowBytesMin)),
                Double(Limits.windowBytesMax)))
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

    private mutating func waitForCredit() throws(FabricError) {
        let startNs = Instant.now().ns
        guard let frame = try receiver.receive() else { throw .closed }
        try take(frame)
        meter.waited(ns: Instant.now().ns - startNs)
    }

    private mutating func collectCredits() throws(FabricError) {
        while let frame = try receiver.receiveIfAny() { try take(frame) }
    }

    private mutating func take(_ frame: FrameHeader) throws(FabricError) {
        switch frame.kind {
        case .credit:
            try credit(frame)
        case .patchable where linesMayCome:
            linesMayCome = false
            do throws(FrameError) { patchable = try PatchablePayload.pages(receiver.payload) } catch {
                throw .frame(error)
            }
            encoder.mayPatch(patchable)
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

    private mutating func account(bytes: Int) {
        sentBytes += UInt64(bytes)
        counters.wireBytes.add(bytes)
    }

    // MARK: After a lost connection

    /// Goes on with a new connection. Of the frames sent, the receiver has applied so many; the others' pages are sent
    /// again, as they are now: what the guest writes meanwhile comes later, by its port.
    private mutating func adopt(_ connection: consuming Connection, applied: UInt64) throws(FabricError) {
        linesMayCome = connection.features.contains(.lines)
        sender = connection.sender
        receiver = connection.receiver
        bytesBefore = counters.wireBytes.now
        counters.confirmedBytes.set(bytesBefore)
        sentBytes = 0
        creditedBytes = 0
        let guest = self.guest
        var pages = lost
        let knows = encoder.resume(applied: applied) { Self.lose(&pages, guest, $0, $1) }
        guard knows else { throw .frame(.badPayload(.credit, "\(applied) frames applied, which is not what was sent")) }
        lost = pages
    }

    private static func lose(
        _ lost: inout PageSet?, _ guest: Monitor<GuestReader?>, _ first: PageNumber, _ count: Int
    ) {
        // Pages come only after the layout.
        guard let pageCount = guest.read({ $0?.layout.pageCount }) else { preconditionFailure("no layout, and pages") }
        var pages = lost.take() ?? PageSet(pageCount: pageCount)
        pages.insert(first: first, count: count)
        lost = pages
    }

    private mutating func sendLost() throws(FabricError) {
        guard let pages = lost, let layout = guest.read({ $0?.layout }) else { return }
        try pages.forEachStripeRun { (first, count) throws(FabricError) in
            // A stripe may hold the end of one block and the beginning of the next.
            var page = first
            while page < first + PageNumber(count), let index = layout.block(of: page) {
                let block = layout.blocks[index]
                let part = Int(min(first + PageNumber(count), block.firstPage + block.pageCount) - page)
                try sendAgain(page, part)
                lost?.remove(first: page, count: part)
                page += PageNumber(part)
            }
        }
        lost = nil
    }

    /// The batches of the pool may all be on their way to this lane.
    private mutating func sendAgain(_ first: PageNumber, _ count: Int) throws(FabricError) {
        var batch = lostBatch.take() ?? Batch()
        encoder.forget(first: first, count: count)
        do throws(FabricError) {
            try audit.fill(&batch, first, count)
            try send(&batch)
        } catch {
            batch.reset()
            lostBatch = consume batch
            throw error
        }
        batch.reset()
        lostBatch = consume batch
    }

    // MARK: The audit

    /// Compares all pages that both sides can read, and sends again what differs, until nothing does. The guest is
    /// stopped, and everything that was sent is installed before the first digest is compared.
    private mutating func verify() throws(FabricError) {
        guard verifies else { return }
        // Which pages the receiver can read is the first thing it says, and may be on its way.
        while linesMayCome { try waitForCredit() }
        var due = audit.runs(in: patchable)
        for _ in 0..<SourceAudit.passes {
            for from in stride(from: 0, to: due.count, by: AuditPayload.entriesMax) {
                let length = try audit.ask(Array(due[from..<min(from + AuditPayload.entriesMax, due.count)]))
                account(bytes: try Self.transmit(&sender, index, audit, length))
                // One question is on its way while the next is made.
                while audit.isFull() { try waitForCredit() }
            }
            while audit.isWaiting() { try waitForCredit() }
            counters.auditedPages.add(due.reduce(0) { $0 + $1.count })
            due = audit.takeDiffering()
            for run in due { try sendWhole(run.first, run.count) }
            if due.isEmpty { return }
        }
        throw .auditFailed(pages: due.reduce(0) { $0 + $1.count })
    }

    private static func transmit(
        _ sender: inout FrameSender, _ lane: UInt16, _ audit: borrowing SourceAudit, _ length: Int
    ) throws(FabricError) -> Int {
        try sender.send(.audit, lane: lane, audit.question.bytes.extracting(0..<length))
    }

    private mutating func sendWhole(_ first: PageNumber, _ count: Int) throws(FabricError) {
        guard var batch = lanes.pool.receive() else { throw .closed }
        encoder.forget(first: first, count: count)
        try audit.fill(&batch, first, count)
        try send(&batch)
        batch.reset()
        _ = lanes.pool.send(batch)
        counters.repairedPages.add(count)
    }

    private func countLines() {
        counters.samePages.set(UInt64(encoder.filtered.samePages))
        counters.linePages.set(UInt64(encoder.filtered.linePages))
        counters.changedLines.set(UInt64(encoder.filtered.lines))
        counters.lineTableBytes.set(UInt64(encoder.tableBytes))
    }
}
