internal import ApusFabric
internal import ApusMemory
internal import ApusSystem
internal import ApusWire

/// The sender's side of `--verify`: questions that are out, and which runs differ.
///
/// ```
///   guest stopped, all pages sent:  digests of up to 64 runs --> receiver reads its own RAM and compares
///                                   <-- want: one bit per run that differs
///   differing runs travel whole, and are asked for again, until nothing differs --> fence
/// ```
struct SourceAudit: ~Copyable, Sendable {
    private let share: LaneShare
    private let guest: Monitor<GuestReader?>
    private(set) var question = PageBuffer(byteCount: AuditPayload.bytesMax)
    private var room = PageBuffer(byteCount: Limits.batchPages * Limits.pageBytes)
    /// Oldest first.
    private var asked: [[(first: PageNumber, count: Int)]] = []
    private var differing: [(first: PageNumber, count: Int)] = []

    /// A page that differs so often is not our doing.
    static let passes = 3
    private static let askedMax = 2

    init(_ share: LaneShare, _ guest: Monitor<GuestReader?>) {
        self.share = share
        self.guest = guest
    }

    func isWaiting() -> Bool { !asked.isEmpty }
    func isFull() -> Bool { asked.count >= Self.askedMax }

    func runs(in patchable: PageRanges) -> [(first: PageNumber, count: Int)] {
        guest.read { $0?.runs(of: share, in: patchable) } ?? []
    }

    /// Writes the next question; returns its length in bytes.
    mutating func ask(_ runs: [(first: PageNumber, count: Int)]) throws(FabricError) -> Int {
        guard let reader = guest.read({ $0 }) else { return 0 }
        for (index, run) in runs.enumerated() {
            let digest: Digest?
            do throws(SystemError) { digest = try reader.digest(first: run.first, count: run.count, &room) } catch {
                throw .system(error)
            }
            AuditPayload.store(.init(first: run.first, count: run.count, digest: digest), at: index, in: &question)
        }
        asked.append(runs)
        return runs.count * AuditPayload.entryBytes
    }

    /// The answer to the oldest question.
    mutating func answered(_ bits: UInt64) {
        let runs = asked.removeFirst()
        for (index, run) in runs.enumerated() where bits & (1 << UInt64(index)) != 0 { differing.append(run) }
    }

    mutating func takeDiffering() -> [(first: PageNumber, count: Int)] {
        defer { differing = [] }
        return differing
    }

    /// Puts a run as it is now into an empty batch.
    mutating func fill(_ batch: inout Batch, _ first: PageNumber, _ count: Int) throws(FabricError) {
        guard let reader = guest.read({ $0 }), reader.readable.contains(first) else { throw .unreadable(page: first) }
        do throws(SystemError) { try reader.read(first: first, count: count, into: &room, at: 0) } catch {
            throw .system(error)
        }
        Self.copy(room, first, count, into: &batch)
    }

    private static func copy(
        _ room: borrowing PageBuffer, _ first: PageNumber, _ count: Int, into batch: inout Batch
    ) {
        for page in 0..<count {
            let from = page * Limits.pageBytes
            batch.add(
                first + PageNumber(page), room.bytes.extracting(from..<from + Limits.pageBytes), startsBlock: page == 0)
        }
    }
}

/// The receiver's side: compares digests with its own RAM.
struct DestinationAudit: ~Copyable, Sendable {
    private let share: LaneShare
    private let reader: GuestReader
    private var room = PageBuffer(byteCount: Limits.batchPages * Limits.pageBytes)
    private(set) var answer = PageBuffer(byteCount: WantPayload.byteCount)

    init(_ share: LaneShare, _ prologue: DestinationState.Prologue) {
        self.share = share
        reader = GuestReader(prologue.layout, prologue.ports)
    }

    /// Fills ``answer``.
    mutating func compare(_ payload: RawSpan) throws(FlowFailure) {
        var differing: UInt64 = 0
        do throws(FrameError) {
            for index in 0..<(try AuditPayload.entryCount(payload)) {
                let entry = try AuditPayload.entry(payload, at: index)
                let last = UInt64(entry.first) + UInt64(entry.count) - 1
                guard last < UInt64(reader.layout.pageCount), share.owns(entry.first),
                    reader.layout.block(of: entry.first) == reader.layout.block(of: PageNumber(last)),
                    reader.readable.contains(entry.first)
                else { throw .badPayload(.audit, "page \(entry.first) cannot be compared here") }
                let mine: Digest?
                do throws(SystemError) {
                    mine = try reader.digest(first: entry.first, count: entry.count, &room)
                } catch { throw .badPayload(.audit, "the destination's RAM cannot be read: \(error)") }
                if mine != entry.digest { differing |= 1 << UInt64(index) }
            }
        } catch { throw FlowFailure("peer", "The audit on lane \(share.lane) is not valid: \(error).") }
        answer.store(differing, at: 0)
    }
}
