internal import ApusCodec
internal import ApusFabric
internal import ApusMemory
internal import ApusSystem
internal import ApusWire
internal import Synchronization

/// What is left to push, and on which connection: the thread of a broken one must not take pages out of it.
struct PushesDue: Sendable {
    let owner: Socket
    var order: PushOrder
}

/// The push connection of a ``PullServer``. What somebody waits for shares the link, so frames are small, and few of them are
/// in flight.
struct PullPushes: ~Copyable {
    private var sender: FrameSender
    private var receiver: FrameReceiver
    private var pages: PullSender
    private var encoder: LaneEncoder
    private var pacer: Pacer
    private var window = PushWindow(bytesPerNs: nil, wayNs: 0)
    private var isFull = false
    /// What comes from the receiver is of pushes; before, of the lane that the connection was.
    private var isOurs = true
    /// When the receiver said so.
    private var takenNs: UInt64 = 0
    /// Of the frame that is being filled.
    private var lane = PullServer.pushLane
    /// Frames that are not credited yet.
    private var inFlight: [InFlight] = []
    private let due: Monitor<PushesDue?>
    private let clock: GuestClock
    private var sentBytes: UInt64 = 0
    private var creditedBytes: UInt64 = 0

    private struct InFlight {
        /// What had been sent with it, and what of that had been credited before.
        let endBytes: UInt64
        let creditedBytes: UInt64
        let sentNs: UInt64
    }

    init(
        _ connection: consuming Connection, _ reader: GuestReader, _ counters: LaneCounters,
        _ due: Monitor<PushesDue?>, _ clock: GuestClock, _ bytesPerS: Double?
    ) {
        let squeezes = connection.features.isSuperset(of: [.lz4, .zstd])
        sender = connection.sender
        receiver = connection.receiver
        pages = PullSender(reader, counters)
        encoder = LaneEncoder(
            LaneShare(lane: 0, lanes: 1), .init(squeezes: squeezes, lineBytes: nil, tableBytesMax: 0),
            cpuNs: Instant.threadCPUNs)
        pacer = Pacer(bytesPerS: bytesPerS)
        self.due = due
        self.clock = clock
    }

    /// Begins when the destination says what it lacks: its device state, sent before, is there or nearly so, and until its
    /// guest runs nobody else needs the link.
    ///
    /// - Parameters:
    ///   - known: what the destination lacks, on a connection that was a lane; nil: it says it.
    ///   - linkBytesPerNs: as the lanes have seen it; nil: they have not.
    ///   - makeOrder: from what the destination lacks.
    ///   - counts: told what was taken out of it.
    mutating func run(
        _ known: PageSet?, linkBytesPerNs: () -> Double?, _ isCurrent: () -> Bool, _ makeOrder: (PageSet) -> PushOrder,
        _ counts: PushCounters
    ) throws(FabricError) {
        isOurs = known == nil
        let missing = if let known { known } else { try learnMissing() }
        let socket = sender.socket
        window = PushWindow(bytesPerNs: linkBytesPerNs(), wayNs: Double(socket.roundTripNs))
        due.update { if isCurrent() { $0 = PushesDue(owner: socket, order: makeOrder(missing)) } }
        while let run = take(socket) {
            counts.add(run)
            try turn(isForeseen: run.reason != .rest)
            // A stripe may hold the end of one block and the beginning of the next.
            var page = run.first
            let end = run.first + PageNumber(run.count)
            while page < end {
                guard let index = pages.reader.layout.block(of: page) else { throw .unreadable(page: page) }
                let block = pages.reader.layout.blocks[index]
                let part = Int(min(end, block.firstPage + block.pageCount) - page)
                let added = try pages.add(page, part)
                page += PageNumber(added)
                if added < part || pages.batch.dataPages >= window.framePages { try send() }
            }
        }
        try send()
        // Until the destination says on the control connection that it is whole, this one stays.
        while try receiver.receive() != nil {}
    }

    /// A frame has pages of one kind.
    private mutating func turn(isForeseen: Bool) throws(FabricError) {
        let next = isForeseen ? PullServer.foreseenLane : PullServer.pushLane
        if next != lane { try send() }
        lane = next
    }

    private func take(_ socket: Socket) -> PushOrder.Run? {
        let limit = max(1, window.framePages - pages.batch.dataPages)
        return due.update { due in
            due?.owner === socket ? due?.order.next(ms: clock.ms, limit: limit) : nil
        }
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
        while let frame = encoder.next(&pages.batch, linkBytesPerNs: window.bytesPerNs, nowNs: Instant.now().ns) {
            guard case .pages(let result) = frame else { continue }
            try waitForLink(FrameHeader.byteCount + result.headBytes + result.rawBytes)
            let sentNs = Instant.now().ns
            let bytes = try PullSender.transmit(
                &sender, lane, encoder.pages.head, pages.batch, result)
            sentBytes += UInt64(bytes)
            inFlight.append(
                InFlight(endBytes: sentBytes, creditedBytes: creditedBytes, sentNs: sentNs))
            pages.counters.wireBytes.add(bytes)
            pages.counters.count(result)
            pages.counters.cpuNs.set(Instant.threadCPUNs())
        }
        pages.batch.reset()
    }

    private mutating func waitForLink(_ length: Int) throws(FabricError) {
        while let frame = try receiver.receiveIfAny() { try take(frame) }
        while true {
            let isFull = sentBytes > creditedBytes && sentBytes - creditedBytes + UInt64(length) > UInt64(window.bytes)
            // So many frames that hold next to nothing are no sign of the link.
            guard isFull || !encoder.flight.hasRoom else { break }
            self.isFull = self.isFull || isFull
            guard let frame = try receiver.receive() else { throw .closed }
            try take(frame)
        }
        let delayNs = pacer.delayNs(for: length, nowNs: Instant.now().ns)
        if delayNs > 0 { pause(ms: Double(delayNs) / 1e6) }
    }

    private mutating func take(_ frame: FrameHeader) throws(FabricError) {
        if isOurs { return try takeCredit() }
        guard frame.kind == .handOver else { return }
        (isOurs, takenNs) = (true, Instant.now().ns)
    }

    private mutating func takeCredit() throws(FabricError) {
        guard receiver.payload.byteCount == 16 else {
            throw .frame(.wrongLength(kind: .credit, length: receiver.payload.byteCount))
        }
        let bytes = receiver.payload.littleEndian(at: 0, as: UInt64.self)
        guard bytes >= creditedBytes, bytes <= sentBytes,
            encoder.confirm(upTo: receiver.payload.littleEndian(at: 8, as: UInt64.self))
        else { throw .frame(.badPayload(.credit, "\(bytes) bytes of \(sentBytes) sent")) }
        creditedBytes = bytes
        let nowNs = Instant.now().ns
        while let frame = inFlight.first, frame.endBytes <= bytes {
            inFlight.removeFirst()
            // What was sent before has waited for the destination.
            guard frame.sentNs >= takenNs else { continue }
            window.credited(
                PushWindow.Frame(
                    inFlightBytes: Int(frame.endBytes - frame.creditedBytes),
                    tookNs: nowNs - frame.sentNs),
                isFull: isFull, framesLeft: inFlight.count, nowNs: nowNs)
            isFull = false
        }
        pages.counters.linkBytesPerS.set(UInt64(window.bytesPerNs * 1e9))
    }
}

/// Time as the guest knows it: it stands still until the guest runs again.
final class GuestClock: Sendable {
    private let startNs = Atomic<UInt64>(0)

    func start() { _ = startNs.compareExchange(expected: 0, desired: Instant.now().ns, ordering: .relaxed) }
    var ms: Double {
        let start = startNs.now
        return start == 0 ? 0 : Double(Instant.now().ns - start) / 1e6
    }
}

/// Pages that were pushed, by what brought them forward; read by anyone.
final class PushCounters: Sendable {
    let near = Atomic<UInt64>(0)
    let trend = Atomic<UInt64>(0)
    let recorded = Atomic<UInt64>(0)
    let rest = Atomic<UInt64>(0)
    /// Touched pages that were on their way already when they were asked for.
    let late = Atomic<UInt64>(0)

    func add(_ run: PushOrder.Run) {
        switch run.reason {
        case .near: near.add(run.count)
        case .trend: trend.add(run.count)
        case .recorded: recorded.add(run.count)
        case .rest: rest.add(run.count)
        }
    }
}
