internal import ApusCodec
public import ApusFabric
public import ApusMemory
public import ApusSystem
internal import ApusWire
internal import Synchronization

/// The source of a VM that runs at its destination already: gives the pages that are still missing there.
///
/// ```
///   urgent connection   wanted: pages that somebody waits for ──▶ answered at once, from a thread of its own
///   push connection     residence: all that is missing       ──▶ sent in the order of ``PushOrder``, within a short window
///                       at first it is a lane that is handed over: then that is known here
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
    private let due = Monitor<PushesDue?>(nil)
    private let pushed = PushCounters()
    private let prefetch: Prefetch
    private let recorded: Monitor<RecordOutcome>
    private let guestClock = GuestClock()
    private let connections = PullConnections()
    /// Bytes per second; 0: not known.
    private let linkBytesPerS = Atomic<UInt64>(0)

    /// What the two connections are called in their hello.
    public static let urgentLane: UInt16 = 0
    public static let pushLane: UInt16 = 1
    /// In the head of a push frame whose pages are thought to be needed soon.
    static let foreseenLane: UInt16 = 2

    /// - Parameters:
    ///   - ports: the blocks of `layout`, in order: each mapped here, so that pages can be given even when QEMU has gone, or in
    ///     the memory of QEMU's process.
    ///   - bytesPerS: upper bound for what nobody waits for; nil: none.
    ///   - linkLost: a connection broke; called from any thread, must not block.
    public init(
        layout: Layout, ports: [BlockPort], bytesPerS: Double?, prefetch: Prefetch = .trend,
        recorded: Monitor<RecordOutcome> = Monitor(RecordOutcome()), linkLost: @escaping @Sendable () -> Void
    ) {
        reader = GuestReader(layout, ports)
        needsQemu = !ports.allSatisfy { if case .mapped = $0 { true } else { false } }
        self.bytesPerS = bytesPerS
        self.prefetch = prefetch
        self.recorded = recorded
        report = linkLost
    }

    /// Takes one of the two connections; a former one of the same kind is dropped.
    public func attach(_ connection: consuming Connection) throws(SystemError) { try begin(connection, nil) }

    /// Takes over a lane, whose window is open: what is missing need not be asked for, and is pushed at the rate of the link
    /// from the first page on.
    func takeOver(_ connection: consuming Connection, missing: PageSet) throws(SystemError) {
        try begin(connection, missing)
    }

    private func begin(_ connection: consuming Connection, _ missing: PageSet?) throws(SystemError) {
        let isUrgent = connection.hello.lane == Self.urgentLane
        try connections.begin(
            connection, isUrgent ? "apus-serve" : "apus-push", nice: isUrgent ? 0 : WorkerThread.background,
            rank: isUrgent ? WorkerThread.urgent : 0
        ) { [self] connection, isCurrent in
            // How it ends does not matter: without a connection nothing can be served, and another one is made.
            if isUrgent {
                var answers = PullAnswers(connection, reader, counters, due, pushed, guestClock)
                try? answers.run()
            } else {
                var pushes = PullPushes(connection, reader, counters, due, guestClock, bytesPerS)
                try? pushes.run(missing, linkBytesPerNs: linkBytesPerNs, isCurrent, makeOrder, pushed)
            }
            if isCurrent() { report() }
        }
    }

    private func makeOrder(_ missing: PageSet) -> PushOrder {
        PushOrder(missing, prefetch, record: recorded.read { $0.record }, ms: guestClock.ms)
    }

    /// Both connections stand.
    public var isConnected: Bool { connections.areBoth }

    /// What the lanes have seen of the link, before anything is pushed.
    public func learnLink(bytesPerS: UInt64) { linkBytesPerS.set(bytesPerS) }
    private func linkBytesPerNs() -> Double? {
        let bytesPerS = linkBytesPerS.now
        return bytesPerS == 0 ? nil : Double(bytesPerS) / 1e9
    }

    /// The guest runs at the destination: its walks go on.
    public func guestRuns() { guestClock.start() }

    /// Ends all connections, until new ones are attached.
    public func hold() {
        connections.end()
        due.update { $0 = nil }
    }

    /// For ever.
    public func stop() { hold() }

    /// What brought the pages forward that were pushed, and the record that did.
    public func prefetched() -> PrefetchCounts {
        let outcome = recorded.read { $0 }
        return PrefetchCounts(
            order: prefetch, nearPages: pushed.near.now, trendPages: pushed.trend.now,
            recordedPages: pushed.recorded.now, restPages: pushed.rest.now, lateFaults: pushed.late.now,
            recordPages: UInt64(outcome.record.pageCount), recordMs: Double(outcome.record.lengthMs),
            zapMs: outcome.zapMs, looksMs: outcome.looksMs, lack: outcome.lack)
    }

    public func sample() -> FlowSample {
        var sample = FlowSample()
        sample.add(counters)
        return sample
    }
}

/// Sends batches of pages on one connection of a ``PullServer``.
struct PullSender: ~Copyable {
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
    private let due: Monitor<PushesDue?>
    private let pushed: PushCounters
    private let clock: GuestClock

    init(
        _ connection: consuming Connection, _ reader: GuestReader, _ counters: LaneCounters,
        _ due: Monitor<PushesDue?>, _ pushed: PushCounters, _ clock: GuestClock
    ) {
        sender = connection.sender
        receiver = connection.receiver
        pages = PullSender(reader, counters)
        self.due = due
        self.pushed = pushed
        self.clock = clock
    }

    mutating func run() throws(FabricError) {
        while let frame = try receiver.receive() {
            guard frame.kind == .wanted else { throw .frame(.unexpectedKind(frame.kind)) }
            for index in 0..<(try runCount()) {
                let run = try run(at: index)
                try answer(run.first, run.count)
                note(run)
            }
        }
    }

    private func note(_ run: (first: PageNumber, count: Int)) {
        let ms = clock.ms
        let late = due.update { due in
            (0..<PageNumber(run.count)).count { due?.order.touched(run.first + $0, ms: ms) == false }
        }
        pushed.late.add(late)
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
