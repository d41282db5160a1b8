import ApusCodec
import ApusMemory
import ApusSystem
import Synchronization

/// One content of one page, told apart by its sum.
struct PageVersion: Equatable {
    var page: PageNumber
    var number: Int
    var sum: UInt64
}

/// A frame on its way, with what the checker knows of it and the receiver does not.
struct FrameInFlight {
    var isUpdate: Bool
    var bytes: [UInt8]
    var pages: [PageVersion]
}

/// Guest memory at the destination.
final class ReplicaMemory {
    var bytes: [UInt8]
    let patchable: PageRanges

    init(_ layout: Layout) {
        bytes = [UInt8](repeating: 0, count: Int(layout.byteCount))
        var ranges = PageRanges()
        ranges.append(0..<layout.blocks[0].pageCount)
        patchable = ranges
    }
}

/// The installer of one lane.
struct ReplicaInstaller: PageInstaller {
    let memory: ReplicaMemory
    var patchable: PageRanges { memory.patchable }

    func installZero(first: PageNumber, count: Int) {
        Self.zero(&memory.bytes, Int(first) * 4096..<(Int(first) + count) * 4096)
    }
    func install(first: PageNumber, _ bytes: RawSpan) { Self.copy(bytes, to: &memory.bytes, at: Int(first) * 4096) }
    func patch(_ page: PageNumber, mask: UInt32, lineBytes: Int, _ bytes: RawSpan) {
        var from = 0
        for line in 0..<4096 / lineBytes where mask & (1 << UInt32(line)) != 0 {
            let part = bytes.extracting(from..<from + lineBytes)
            Self.copy(part, to: &memory.bytes, at: Int(page) * 4096 + line * lineBytes)
            from += lineBytes
        }
    }

    private static func copy(_ bytes: RawSpan, to memory: inout [UInt8], at: Int) {
        for index in 0..<bytes.byteCount { memory[at + index] = bytes.byte(at: index) }
    }
    private static func zero(_ memory: inout [UInt8], _ range: Range<Int>) {
        for index in range { memory[index] = 0 }
    }
}

/// Of one page in a whole memory.
func pageSum(_ memory: [UInt8], _ page: PageNumber) -> UInt64 {
    Checksum.of(memory.rawBytes.extracting(Int(page) * 4096..<Int(page + 1) * 4096))
}

/// Both ends of one lane and the link between them: the real encoder, decoders, tables and ledger.
final class LineWorldLane {
    let share: LaneShare
    private(set) var encoder: LaneEncoder
    private var batches: BatchDecoder
    private var updates: UpdateDecoder
    private var replica: ReplicaMap
    private var installer: ReplicaInstaller
    /// Batches that the port has filled, with the versions in them.
    private var queue: [(batch: OneShot<Batch>, pages: [PageVersion])] = []
    /// Versions of the pages whose lines are gathered, not sent.
    private var gathered: [PageNumber: PageVersion] = [:]
    private(set) var link: [FrameInFlight] = []
    private var credits: [UInt64] = []
    private(set) var applied: UInt64 = 0
    private var appliedNumber: [PageNumber: Int] = [:]
    private var lastUpdate: FrameInFlight?
    private let linkBytesPerNs: Double

    init(
        _ layout: Layout, _ share: LaneShare, _ options: LaneEncoder.Options, _ memory: ReplicaMemory,
        linkBytesPerNs: Double
    ) {
        self.share = share
        self.linkBytesPerNs = linkBytesPerNs
        installer = ReplicaInstaller(memory: memory)
        batches = BatchDecoder(layout: layout, share)
        updates = UpdateDecoder(layout: layout)
        replica = ReplicaMap(share)
        let clock = Ticker()
        encoder = LaneEncoder(share, options, cpuNs: { clock.next() })
    }

    var isIdle: Bool { queue.isEmpty && link.isEmpty && encoder.updates.isEmpty }
    var mayFill: Bool { queue.count < Limits.batchesPerLane }

    /// Pages that are neither at the source alone nor settled at the destination.
    var outstanding: Set<PageNumber> {
        Set(queue.flatMap { $0.pages.map(\.page) } + link.flatMap { $0.pages.map(\.page) } + gathered.keys)
    }

    func mayPatch() { encoder.mayPatch(installer.patchable) }

    func fill(_ batch: consuming Batch, _ pages: [PageVersion]) { queue.append((OneShot(batch), pages)) }

    /// The lane's thread takes one batch.
    func work(nowNs: UInt64) {
        guard encoder.flight.sent - encoder.flight.confirmed < 200, !queue.isEmpty else { return }
        let (box, pages) = queue.removeFirst()
        guard var batch = box.take() else { return }
        let own = Dictionary(uniqueKeysWithValues: pages.map { ($0.page, $0) })
        while let frame = encoder.next(&batch, linkBytesPerNs: linkBytesPerNs, nowNs: nowNs) {
            switch frame {
            case .pages(let result):
                var sent: [PageVersion] = []
                for index in 0..<batch.recordCount {
                    let record = batch.records[index]
                    for page in record.first..<record.first + PageNumber(record.count) {
                        if let version = own[page] { sent.append(version) }
                    }
                }
                let bytes = bytes(encoder.pages.head, result.headBytes) + bytes(batch.data, result.rawBytes)
                link.append(FrameInFlight(isUpdate: false, bytes: bytes, pages: sent))
            case .updates(let result):
                send(result, own)
            }
        }
        for index in 0..<encoder.updates.pageCount {
            let page = encoder.updates.page(at: index)
            if let version = own[page] { gathered[page] = version }
        }
    }

    /// The lane's thread finds no batch in time, or a fence.
    func flush() {
        if let result = encoder.flush(linkBytesPerNs: linkBytesPerNs) { send(result, [:]) }
    }

    private func send(_ result: UpdateEncoder.Result, _ own: [PageNumber: PageVersion]) {
        let head = bytes(encoder.updates.head, result.headBytes)
        let count = Int(head[0]) | Int(head[1]) << 8
        let pages = (0..<count).map { encoder.updates.page(at: $0) }
        // What was gathered before this batch wins: a page of both must have made the older one go first.
        let versions = pages.compactMap { gathered.removeValue(forKey: $0) ?? own[$0] }
        link.append(
            FrameInFlight(
                isUpdate: true, bytes: head + bytes(encoder.updates.lines, result.rawBytes), pages: versions))
    }

    private func bytes(_ buffer: borrowing PageBuffer, _ count: Int) -> [UInt8] {
        buffer.bytes.extracting(0..<count).bytesCopied
    }

    /// The receiver applies the next frame; the checker looks at every page of it.
    func deliver(_ sabotage: LineSabotage) throws {
        guard !link.isEmpty else { return }
        if sabotage == .framesChangePlaces && link.count > 1 { link.swapAt(0, 1) }
        let frame = link.removeFirst()
        try apply(frame, sabotage)
        applied += 1
        credits.append(applied)
        if frame.isUpdate { lastUpdate = frame }
    }

    /// A frame that was applied long ago arrives again.
    func deliverAgain(_ sabotage: LineSabotage) throws {
        if let lastUpdate { try apply(lastUpdate, sabotage) }
    }

    private func apply(_ frame: FrameInFlight, _ sabotage: LineSabotage) throws {
        if frame.isUpdate {
            if sabotage == .staleIsApplied { believe(frame) }
            _ = try updates.decode(frame.bytes.rawBytes, &replica, into: &installer)
        } else {
            _ = try batches.decode(frame.bytes.rawBytes, &replica, into: &installer)
        }
        for version in frame.pages {
            guard version.number >= appliedNumber[version.page, default: -1] else {
                throw LineViolation("page \(version.page) went back to version \(version.number)")
            }
            guard pageSum(installer.memory.bytes, version.page) == version.sum else {
                throw LineViolation("page \(version.page) is not what version \(version.number) was")
            }
            appliedNumber[version.page] = version.number
        }
    }

    /// A receiver that takes every base for its own.
    private func believe(_ frame: FrameInFlight) {
        for index in 0..<frame.pages.count {
            let at = UpdatePayload.headBytes + index * UpdatePayload.entryBytes
            let page = frame.bytes.rawBytes.littleEndian(at: at, as: UInt32.self)
            replica.setWhole(first: page, count: 1)
            for _ in 1..<max(1, frame.bytes[at + 8]) { replica.setUpdated(page) }
        }
    }

    /// The oldest credit arrives.
    func credit() throws {
        guard !credits.isEmpty else { return }
        guard encoder.confirm(upTo: credits.removeFirst()) else { throw LineViolation("a credit was refused") }
    }

    /// The connection breaks with all that is on it, and the lane goes on from what was applied. Returns the pages to send
    /// again.
    func reconnect(_ sabotage: LineSabotage) throws -> [PageNumber] {
        link.removeAll()
        credits.removeAll()
        gathered.removeAll()
        var lost: [PageNumber] = []
        let told = sabotage == .moreIsConfirmed ? encoder.flight.sent : applied
        let isSound = encoder.resume(applied: told) { first, count in
            for page in first..<first + PageNumber(count) { lost.append(page) }
        }
        guard isSound else { throw LineViolation("the ledger refused what was applied") }
        return sabotage == .lostIsForgotten ? [] : lost
    }
}

/// A clock that moves as a thread's CPU time does, the same in every run.
final class Ticker: Sendable {
    private let ns = Atomic<UInt64>(0)
    func next() -> UInt64 { ns.wrappingAdd(9_000, ordering: .relaxed).newValue }
}
