internal import ApusCodec
internal import ApusFabric
internal import ApusMemory
internal import ApusSystem
internal import ApusWire
internal import Synchronization

/// Why a flow ended before its time; text for people.
public struct FlowFailure: Error, Equatable, Sendable, CustomStringConvertible {
    /// Stable identifier: `link`, `qemu-stream`, `install`, `peer`.
    public var code: String
    public var description: String
    public init(_ code: String, _ description: String) {
        self.code = code
        self.description = description
    }

    /// Within a receiving lane: its connection is gone.
    static let linkLost = FlowFailure("link", "The connection was lost.")
}

/// What the lanes and the control thread of a destination share.
final class DestinationState: Sendable {
    /// What lanes must know before the first page.
    final class Prologue: Sendable {
        let layout: Layout
        /// The same blocks for records of QEMU's stream.
        let table: RamBlockTable
        /// One per block.
        let ports: [BlockPort]
        let ramSection: UInt32
        /// Pages that updates may name.
        let patchable: PageRanges

        init(layout: Layout, table: RamBlockTable, ports: [BlockPort], ramSection: UInt32) {
            precondition(ports.count == layout.blocks.count)
            self.layout = layout
            self.table = table
            self.ports = ports
            self.ramSection = ramSection
            var patchable = PageRanges()
            for (block, port) in zip(layout.blocks, ports) where port.takesPatches {
                patchable.append(block.firstPage..<block.firstPage + block.pageCount)
            }
            self.patchable = patchable
        }

        /// The ports of some of the blocks, in their order; nil: one of them is not here.
        func ports(of wanted: Layout) -> [BlockPort]? {
            var chosen: [BlockPort] = []
            for block in wanted.blocks {
                let index = layout.blocks.firstIndex { $0.name == block.name && $0.byteCount == block.byteCount }
                guard let index else { return nil }
                chosen.append(ports[index])
            }
            return chosen
        }
    }
    private struct Content {
        var prologue: Prologue?
        var fences: [UInt32]
        var failed = false
    }
    private let content: Monitor<Content>
    private let sealed = Atomic(false)

    init(lanes: Int) { content = Monitor(Content(fences: [UInt32](repeating: 0, count: lanes))) }

    func begin(_ prologue: Prologue) { content.update { $0.prologue = prologue } }

    /// Wakes everyone who waits here, for ever.
    func fail() { content.update { $0.failed = true } }

    /// From now on nothing may come over what is installed: the guest's memory belongs to the guest.
    func seal() { sealed.store(true, ordering: .relaxed) }
    var isSealed: Bool { sealed.load(ordering: .relaxed) }

    var prologue: Prologue? { content.read { $0.prologue } }
    var hasPrologue: Bool { content.read { $0.prologue != nil } }

    /// Blocks until the RAM blocks are known; nil when the flow has failed.
    func waitForPrologue() -> Prologue? {
        content.wait { $0.failed ? .some(nil) : $0.prologue.map { .some($0) } } ?? nil
    }

    func passed(_ epoch: UInt32, lane: Int) {
        content.update { $0.fences[lane] = max($0.fences[lane], epoch) }
    }

    /// Blocks until every lane has installed all that is older than the fence; false when the flow has failed.
    func waitForFence(_ epoch: UInt32) -> Bool {
        content.wait { content in
            if content.failed { return false }
            return content.fences.allSatisfy { $0 >= epoch } ? true : nil
        } ?? false
    }
}

/// The receiving half of a lane: checks, decodes and installs batches, and credits the sender. Runs on its own thread.
struct ReceiveLane: ~Copyable, Sendable {
    let share: LaneShare
    private var takesLines: Bool
    let counters: LaneCounters
    private let state: DestinationState
    private let feed: QemuFeed
    private let dock: LaneDock
    /// What belongs between pages; may block.
    private let pass: @Sendable (ControlLink.Message) throws(FlowFailure) -> Void
    private var room = PageBuffer(byteCount: StreamSqueezer.byteCountMax)
    private let linkLost: @Sendable (Int) -> Void
    private var attempt: Int
    var sender: FrameSender
    var receiver: FrameReceiver
    private var receivedBytes: UInt64 = 0
    /// Batches and updates applied.
    private var frames: UInt64 = 0
    private var creditedBytes: UInt64 = 0
    private var creditedFrames: UInt64 = 0
    private var credit = PageBuffer(byteCount: 16)

    /// A credit is sent when one of these has come together; far below the sender's window.
    static let creditBytes: UInt64 = 64 << 10
    private static let creditFrames: UInt64 = 32

    init(
        index: Int, of lanes: Int, _ connection: consuming Connection, _ counters: LaneCounters,
        _ state: DestinationState, _ feed: QemuFeed, _ dock: LaneDock, attempt: Int,
        pass: @escaping @Sendable (ControlLink.Message) throws(FlowFailure) -> Void,
        linkLost: @escaping @Sendable (Int) -> Void
    ) {
        self.attempt = attempt
        self.dock = dock
        self.pass = pass
        self.linkLost = linkLost
        share = LaneShare(lane: index, lanes: lanes)
        takesLines = connection.features.contains(.lines)
        self.counters = counters
        self.state = state
        self.feed = feed
        sender = connection.sender
        receiver = connection.receiver
    }

    /// Runs until the flow is over. When the connection is lost, or the sender has ended the lane, it waits for another one
    /// and goes on where it was.
    ///
    /// - Returns: true: pages that follow the guest come on its connection from here on.
    mutating func run(
        _ prologue: DestinationState.Prologue, _ terms: DestinationReferences?
    ) throws(FlowFailure) -> Bool {
        var batches = BatchDecoder(layout: prologue.layout, share)
        var updates = UpdateDecoder(layout: prologue.layout)
        var replica = ReplicaMap(share)
        var installer = try makeInstaller(prologue)
        var audit = DestinationAudit(share, prologue)
        var references = try makeReferences(terms, prologue.layout)
        defer { references.close() }
        while true {
            do throws(FlowFailure) {
                if takesLines { try announce(prologue.patchable) }
                if try take(&batches, &updates, &replica, &installer, &audit, &references) { return true }
            } catch {
                guard error == .linkLost else { throw error }
                linkLost(attempt)
            }
            // Their pages come again, by the next connection.
            installer.awaited.dropAll()
            guard let berth = dock.next(applied: frames), let connection = berth.connection.take() else { return false }
            attempt = berth.attempt
            adopt(connection)
        }
    }

    private mutating func adopt(_ connection: consuming Connection) {
        takesLines = connection.features.contains(.lines)
        sender = connection.sender
        receiver = connection.receiver
        receivedBytes = 0
        creditedBytes = 0
        creditedFrames = frames
    }

    /// The connection as it is for pages that follow the guest.
    consuming func handedOver() -> Connection {
        Connection(
            sender: sender, receiver: receiver, hello: Hello(role: .urgent, lane: PullServer.pushLane, lanes: 2),
            features: .all)
    }

    /// Takes frames until the sender ends the lane, or hands it over: true.
    private mutating func take(
        _ batches: inout BatchDecoder, _ updates: inout UpdateDecoder, _ replica: inout ReplicaMap,
        _ installer: inout RAMInstaller, _ audit: inout DestinationAudit, _ references: inout IncomingReferences
    ) throws(FlowFailure) -> Bool {
        while true {
            try waitForFrame(&references, &installer)
            let frame = try receive()
            receivedBytes += UInt64(FrameHeader.byteCount + frame.length)
            counters.wireBytes.add(FrameHeader.byteCount + frame.length)
            if state.isSealed && !frame.kind.mayFollowPages {
                throw FlowFailure("peer", "The source sent pages behind its last fence.")
            }
            switch frame.kind {
            case .batch:
                try install(&batches, &replica, &installer)
                try applied()
            case .update where takesLines:
                try install(&updates, &replica, &installer)
                try applied()
            case .reference:
                try accept(&references, &replica, &installer)
                try applied()
            case .audit:
                try compare(&audit)
            case .fence:
                guard installer.awaited.wantedCount == 0 else {
                    throw FlowFailure("peer", "The source closed lane \(share.lane) with references unanswered.")
                }
                state.passed(frame.epoch, lane: share.lane)
                try sendCredit()
            case .stream, .squeezedStream, .residence:
                try pass(try message(frame))
                try applied()
            case .handOver:
                try answerHandOver()
                return true
            case .end:
                return false
            case .hello, .welcome, .refusal, .control, .returnPath, .layout, .credit, .want,
                .update, .patchable, .wanted, .referenceAnswer, .held:
                throw unexpected(frame)
            }
            counters.cpuNs.set(Instant.threadCPUNs())
        }
    }

    private mutating func answerHandOver() throws(FlowFailure) {
        do throws(FabricError) { try sender.send(.handOver, lane: UInt16(share.lane)) } catch { throw broken(error) }
        dock.leave()
    }

    private func unexpected(_ frame: FrameHeader) -> FlowFailure {
        FlowFailure("peer", "The source sent a \(frame.kind) frame on lane \(share.lane).")
    }

    private mutating func message(_ frame: FrameHeader) throws(FlowFailure) -> ControlLink.Message {
        // On several lanes the pieces would be in no order.
        guard share.lane == 0 else { throw unexpected(frame) }
        do throws(FabricError) { return try Self.message(frame, receiver, &room) } catch { throw broken(error) }
    }

    private static func message(
        _ frame: FrameHeader, _ receiver: borrowing FrameReceiver, _ room: inout PageBuffer
    ) throws(FabricError) -> ControlLink.Message {
        try StreamSqueezer.message(frame, receiver.payload, &room)
    }

    func broken(_ error: FabricError) -> FlowFailure {
        error.isLoss ? .linkLost : FlowFailure("link", "Lane \(share.lane) from the source broke: \(error)")
    }

    private func makeInstaller(_ prologue: DestinationState.Prologue) throws(FlowFailure) -> RAMInstaller {
        do throws(SystemError) {
            return RAMInstaller(prologue, feed, written: try RAMInstaller.pagesWithData(prologue))
        } catch {
            throw FlowFailure("install", "The destination's RAM cannot be examined: \(error).")
        }
    }

    private mutating func announce(_ patchable: PageRanges) throws(FlowFailure) {
        do throws(FabricError) {
            try sender.send(.patchable, lane: UInt16(share.lane), PatchablePayload.bytes(patchable).rawBytes)
        } catch { throw broken(error) }
    }

    private mutating func receive() throws(FlowFailure) -> FrameHeader {
        do throws(FabricError) {
            guard let frame = try receiver.receive() else { throw .closed }
            return frame
        } catch { throw broken(error) }
    }

    private mutating func install(
        _ decoder: inout BatchDecoder, _ replica: inout ReplicaMap, _ installer: inout RAMInstaller
    ) throws(FlowFailure) {
        do throws(PayloadError) {
            let counts = try decoder.decode(receiver.payload, &replica, into: &installer)
            counters.zeroPages.add(counts.zeroPages)
            counters.rawPages.add(counts.rawPages)
            counters.zstdPages.add(counts.squeezedPages)
        } catch { throw failure(error, in: "a batch") }
    }

    private mutating func install(
        _ decoder: inout UpdateDecoder, _ replica: inout ReplicaMap, _ installer: inout RAMInstaller
    ) throws(FlowFailure) {
        do throws(PayloadError) {
            let counts = try decoder.decode(receiver.payload, &replica, into: &installer)
            counters.linePages.add(counts.pages)
            counters.changedLines.add(counts.lines)
        } catch { throw failure(error, in: "an update") }
    }

    private mutating func compare(_ audit: inout DestinationAudit) throws(FlowFailure) {
        try audit.compare(receiver.payload)
        do throws(FabricError) { try Self.answer(&sender, UInt16(share.lane), audit) } catch {
            throw broken(error)
        }
    }

    private static func answer(
        _ sender: inout FrameSender, _ lane: UInt16, _ audit: borrowing DestinationAudit
    ) throws(FabricError) {
        try sender.send(.want, lane: lane, audit.answer.bytes)
    }

    func failure(_ error: PayloadError, in what: String) -> FlowFailure {
        if case .install(let text) = error {
            return FlowFailure("install", "Pages could not be installed in the destination's RAM: \(text).")
        }
        return FlowFailure("peer", "The source sent \(what) that is not valid on lane \(share.lane): \(error).")
    }

    private mutating func applied() throws(FlowFailure) {
        frames += 1
        if receivedBytes - creditedBytes >= Self.creditBytes || frames - creditedFrames >= Self.creditFrames {
            try sendCredit()
        }
    }

    private mutating func sendCredit() throws(FlowFailure) {
        creditedBytes = receivedBytes
        creditedFrames = frames
        Self.store(receivedBytes, frames, in: &credit)
        do throws(FabricError) { try Self.transmit(&sender, lane: UInt16(share.lane), credit) } catch {
            throw broken(error)
        }
    }

    /// What a credit says: bytes received on this connection, batches applied.
    static func store(_ bytes: UInt64, _ frames: UInt64, in credit: inout PageBuffer) {
        var span = credit.mutableBytes
        span.store(littleEndian: bytes, at: 0)
        span.store(littleEndian: frames, at: 8)
    }

    private static func transmit(
        _ sender: inout FrameSender, lane: UInt16, _ credit: borrowing PageBuffer
    ) throws(FabricError) {
        try sender.send(.credit, lane: lane, credit.bytes)
    }
}

extension FrameKind {
    /// Comes behind the last fence too: no page of the guest's is in it.
    fileprivate var mayFollowPages: Bool {
        switch self {
        case .end, .handOver, .stream, .squeezedStream: true
        default: false
        }
    }
}

/// Runs system calls, with their errors as the flow's.
func wrap<R>(_ code: String, _ body: () throws(SystemError) -> R) throws(FlowFailure) -> R {
    do throws(SystemError) { return try body() } catch { throw FlowFailure(code, "\(error)") }
}
