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

/// The sending half of a lane: takes batches, encodes them, sends them, keeps within the window that the receiver's
/// credits leave. Runs on its own thread; owns everything it touches.
struct SendLane: ~Copyable, Sendable {
    private let index: UInt16
    private let lanes: LaneQueue
    private let counters: LaneCounters
    private let maySqueeze: Bool
    private var sender: FrameSender
    private var receiver: FrameReceiver
    private var encoder = BatchEncoder()
    private var chooser = CodecChooser()
    private var meter: LinkMeter
    private var pacer: Pacer
    private var probeScratch = PageBuffer(byteCount: 32 << 10)
    private var sentBytes: UInt64 = 0
    private var sentBatches: UInt64 = 0
    private var creditedBytes: UInt64 = 0
    private var creditedBatches: UInt64 = 0

    /// Share of a 1 Gb/s link that is assumed before anything is measured.
    private static let assumedBytesPerNs = 0.125
    /// Pages squeezed on trial to see whether the data compress at all.
    private static let probePages = 4
    /// How much of the link's time may be in flight: long enough to keep it busy, short enough for a quick switch.
    private static let windowNs = 20_000_000.0

    init(
        index: Int, of count: Int, _ connection: consuming Connection, _ lanes: LaneQueue, _ counters: LaneCounters,
        bytesPerS: Double?
    ) {
        self.index = UInt16(index)
        self.lanes = lanes
        self.counters = counters
        maySqueeze = connection.features.isSuperset(of: .all)
        sender = connection.sender
        receiver = connection.receiver
        meter = LinkMeter(nowNs: Instant.now().ns, assumedBytesPerNs: Self.assumedBytesPerNs / Double(count))
        pacer = Pacer(bytesPerS: bytesPerS.map { $0 / Double(count) })
    }

    /// Runs until the queue is closed and empty.
    mutating func run() throws(FabricError) {
        while let item = lanes.queue.receive() {
            switch consume item {
            case .batch(var batch):
                try send(&batch)
                batch.reset()
                _ = lanes.pool.send(batch)
            case .fence(let epoch):
                try collectCredits()
                account(bytes: try sender.send(.fence, lane: index, epoch: epoch))
            }
            counters.cpuNs.set(Instant.threadCPUNs())
        }
        try sender.send(.end, lane: index)
    }

    private mutating func send(_ batch: inout Batch) throws(FabricError) {
        let result = encode(&batch)
        let length = FrameHeader.byteCount + result.headBytes + result.rawBytes
        try collectCredits()
        try waitForWindow(length)
        let delayNs = pacer.delayNs(for: length, nowNs: Instant.now().ns)
        if delayNs > 0 { pause(ms: Double(delayNs) / 1e6) }

        let before = Instant.now().ns
        let sent = try Self.transmit(&sender, lane: index, encoder, batch, result)
        let after = Instant.now().ns
        // A send that takes much longer than copying into the socket has waited for the link.
        if after - before > 1_000_000 { meter.waited(ns: after - before) }
        if delayNs > 0 { meter.waited(ns: delayNs) }
        meter.tick(nowNs: after)
        sentBatches += 1
        account(bytes: sent)
        count(result)
    }

    private static func transmit(
        _ sender: inout FrameSender, lane: UInt16, _ encoder: borrowing BatchEncoder, _ batch: borrowing Batch,
        _ result: BatchEncoder.Result
    ) throws(FabricError) -> Int {
        try sender.send(
            .batch, lane: lane, encoder.head.bytes.extracting(0..<result.headBytes),
            batch.data.bytes.extracting(0..<result.rawBytes))
    }

    private mutating func encode(_ batch: inout Batch) -> BatchEncoder.Result {
        guard maySqueeze, batch.dataPages > 0 else { return encoder.encode(&batch, .raw) }
        if chooser.wantsProbe() {
            let bytes = min(batch.dataPages, Self.probePages) * Limits.pageBytes
            let size = ZstdSqueezer.probe(batch.data.bytes.extracting(0..<bytes), scratch: &probeScratch)
            chooser.probed(ratio: Double(size) / Double(bytes))
        }
        let choice = chooser.decide(linkBytesPerNs: meter.bytesPerNs)
        guard choice != .raw else { return encoder.encode(&batch, .raw) }
        let source = Double(batch.dataPages * Limits.pageBytes)
        let startNs = Instant.threadCPUNs()
        let result = encoder.encode(&batch, choice)
        let nsPerByte = Double(Instant.threadCPUNs() - startNs) / source
        let left = result.codec == .none ? 1 : Double(result.squeezedBytes) / source
        chooser.measured(choice, nsPerByte: nsPerByte, ratio: left)
        return result
    }

    private mutating func waitForWindow(_ length: Int) throws(FabricError) {
        let window = UInt64(
            min(
                max(meter.bytesPerNs * Self.windowNs, Double(Limits.windowBytesMin)),
                Double(Limits.windowBytesMax)))
        let before = Instant.now().ns
        var waited = false
        while sentBytes - creditedBytes > 0
            && (sentBytes - creditedBytes + UInt64(length) > window
                || sentBatches - creditedBatches >= Limits.batchesInFlight)
        {
            waited = true
            guard let frame = try receiver.receive() else { throw .closed }
            try credit(frame)
        }
        if waited { meter.waited(ns: Instant.now().ns - before) }
    }

    private mutating func collectCredits() throws(FabricError) {
        while let frame = try receiver.receiveIfAny() { try credit(frame) }
    }

    private mutating func credit(_ frame: FrameHeader) throws(FabricError) {
        guard frame.kind == .credit else { throw .frame(.unexpectedKind(frame.kind)) }
        guard frame.length == 16 else { throw .frame(.wrongLength(kind: .credit, length: frame.length)) }
        let bytes = receiver.payload.littleEndian(at: 0, as: UInt64.self)
        let batches = receiver.payload.littleEndian(at: 8, as: UInt64.self)
        guard bytes >= creditedBytes, bytes <= sentBytes, batches >= creditedBatches, batches <= sentBatches else {
            throw .frame(.badPayload(.credit, "\(bytes) bytes of \(sentBytes) sent"))
        }
        meter.credited(bytes - creditedBytes)
        creditedBytes = bytes
        creditedBatches = batches
        counters.confirmedBytes.set(bytes)
        counters.linkBytesPerS.set(UInt64(meter.bytesPerNs * 1e9))
    }

    private mutating func account(bytes: Int) {
        sentBytes += UInt64(bytes)
        counters.wireBytes.add(bytes)
    }

    private func count(_ result: BatchEncoder.Result) {
        counters.zeroPages.add(result.zeroPages)
        counters.rawPages.add(result.rawPages)
        switch result.codec {
        case .none: break
        case .lz4:
            counters.lz4Pages.add(result.squeezedPages)
            counters.lz4Bytes.add(result.squeezedBytes)
        case .zstd:
            counters.zstdPages.add(result.squeezedPages)
            counters.zstdBytes.add(result.squeezedBytes)
        }
    }
}
