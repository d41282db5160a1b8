internal import ApusCodec
internal import ApusFabric
internal import ApusMemory
internal import ApusSystem
internal import ApusWire

/// Why a flow ended before its time; text for people.
public struct FlowFailure: Error, Equatable, Sendable, CustomStringConvertible {
    /// Stable identifier: `link`, `qemu-stream`, `install`, `peer`.
    public var code: String
    public var description: String
    public init(_ code: String, _ description: String) {
        self.code = code
        self.description = description
    }
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

        init(layout: Layout, table: RamBlockTable, ports: [BlockPort], ramSection: UInt32) {
            precondition(ports.count == layout.blocks.count)
            self.layout = layout
            self.table = table
            self.ports = ports
            self.ramSection = ramSection
        }
    }
    private struct Content {
        var prologue: Prologue?
        var fences: [UInt32]
        var failed = false
    }
    private let content: Monitor<Content>

    init(lanes: Int) { content = Monitor(Content(fences: [UInt32](repeating: 0, count: lanes))) }

    func begin(_ prologue: Prologue) { content.update { $0.prologue = prologue } }

    /// Wakes everyone who waits here, for ever.
    func fail() { content.update { $0.failed = true } }

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
    private let index: Int
    private let lanes: Int
    private let counters: LaneCounters
    private let state: DestinationState
    private let feed: QemuFeed
    private var sender: FrameSender
    private var receiver: FrameReceiver
    private var receivedBytes: UInt64 = 0
    private var batches: UInt64 = 0
    private var creditedBytes: UInt64 = 0
    private var creditedBatches: UInt64 = 0
    private var credit = PageBuffer(byteCount: 16)

    /// A credit is sent when one of these has come together; far below the sender's window.
    private static let creditBytes: UInt64 = 64 << 10
    private static let creditBatches: UInt64 = 32

    init(
        index: Int, of lanes: Int, _ connection: consuming Connection, _ counters: LaneCounters,
        _ state: DestinationState, _ feed: QemuFeed
    ) {
        self.index = index
        self.lanes = lanes
        self.counters = counters
        self.state = state
        self.feed = feed
        sender = connection.sender
        receiver = connection.receiver
    }

    /// Runs until the sender ends the lane. A lane that breaks off without its end has failed.
    mutating func run() throws(FlowFailure) {
        guard let prologue = state.waitForPrologue() else { return }
        var decoder = BatchDecoder(layout: prologue.layout, lane: index, lanes: lanes)
        var installer = try makeInstaller(prologue)
        while true {
            let frame = try receive()
            receivedBytes += UInt64(FrameHeader.byteCount + frame.length)
            counters.wireBytes.add(FrameHeader.byteCount + frame.length)
            switch frame.kind {
            case .batch:
                try install(&decoder, &installer)
                batches += 1
                if receivedBytes - creditedBytes >= Self.creditBytes || batches - creditedBatches >= Self.creditBatches
                {
                    try sendCredit()
                }
            case .fence:
                state.passed(frame.epoch, lane: index)
                try sendCredit()
            case .end:
                return
            case .hello, .welcome, .refusal, .control, .stream, .squeezedStream, .returnPath, .layout, .credit, .want:
                throw FlowFailure("peer", "The source sent a \(frame.kind) frame on lane \(index).")
            }
            counters.cpuNs.set(Instant.threadCPUNs())
        }
    }

    private func makeInstaller(_ prologue: DestinationState.Prologue) throws(FlowFailure) -> RAMInstaller {
        do throws(SystemError) {
            return RAMInstaller(prologue, feed, written: try RAMInstaller.pagesWithData(prologue))
        } catch {
            throw FlowFailure("install", "The destination's RAM cannot be examined: \(error).")
        }
    }

    private mutating func receive() throws(FlowFailure) -> FrameHeader {
        do throws(FabricError) {
            guard let frame = try receiver.receive() else { throw .closed }
            return frame
        } catch { throw FlowFailure("link", "Lane \(index) from the source broke: \(error)") }
    }

    private mutating func install(
        _ decoder: inout BatchDecoder, _ installer: inout RAMInstaller
    ) throws(FlowFailure) {
        do throws(PayloadError) {
            let counts = try decoder.decode(receiver.payload, into: &installer)
            counters.zeroPages.add(counts.zeroPages)
            counters.rawPages.add(counts.rawPages)
            counters.zstdPages.add(counts.squeezedPages)
        } catch {
            if case .install(let text) = error {
                throw FlowFailure("install", "Pages could not be installed in the destination's RAM: \(text).")
            }
            throw FlowFailure("peer", "The source sent a batch that is not valid on lane \(index): \(error).")
        }
    }

    private mutating func sendCredit() throws(FlowFailure) {
        creditedBytes = receivedBytes
        creditedBatches = batches
        Self.store(receivedBytes, batches, in: &credit)
        do throws(FabricError) { try Self.transmit(&sender, lane: UInt16(index), credit) } catch {
            throw FlowFailure("link", "Lane \(index) to the source broke: \(error)")
        }
    }

    private static func store(_ bytes: UInt64, _ batches: UInt64, in credit: inout PageBuffer) {
        var span = credit.mutableBytes
        span.store(littleEndian: bytes, at: 0)
        span.store(littleEndian: batches, at: 8)
    }

    private static func transmit(
        _ sender: inout FrameSender, lane: UInt16, _ credit: borrowing PageBuffer
    ) throws(FabricError) {
        try sender.send(.credit, lane: lane, credit.bytes)
    }
}

/// Runs system calls, with their errors as the flow's.
func wrap<R>(_ code: String, _ body: () throws(SystemError) -> R) throws(FlowFailure) -> R {
    do throws(SystemError) { return try body() } catch { throw FlowFailure(code, "\(error)") }
}
