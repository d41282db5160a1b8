internal import ApusContent
internal import ApusMemory
internal import ApusSystem
internal import ApusWire

/// A sending lane's references: what it finds in a batch, and what the receiver has not answered yet.
///
/// ```
///   page of a batch -- found elsewhere --> frame n: waiting -- answer: proved ----------> done
///                                             |          `--- refused, overtaken? --.
///                                             |                                     v
///                                             `-- silence, last fence, lost link --> its page travels, as it is by then
/// ```
///
/// The page's content is read again when it travels after all, so it is never older than what was sent before; what the
/// guest writes later comes later, by its port. What the receiver holds of a page in a reference is not known before the
/// answer, so the next version of it travels whole.
struct OutgoingReferences: ~Copyable, Sendable {
    /// Pages found one after the other in the batch, where they are, and in the batch's data from `slot` on.
    private struct Match: Sendable {
        var page: PageNumber = 0
        var at: UInt32 = 0
        var place: UInt8 = 0
        var slot: UInt8 = 0
        var pages: UInt8 = 0

        func continues(with page: PageNumber, _ found: (place: UInt8, at: UInt32)) -> Bool {
            place == found.place && self.page + PageNumber(pages) == page && UInt64(at) + UInt64(pages) == found.at
                && pages < Limits.referencePages
        }
    }

    private struct Waiting: Sendable {
        var number: UInt32
        var isSnapshot: Bool
        var count = 0
        var pages = InlineArray<64, PageNumber>(repeating: 0)

        mutating func add(_ page: PageNumber) {
            pages[count] = page
            count += 1
        }
    }

    struct Counts: Sendable, Equatable {
        var diskPages = 0
        var snapshotPages = 0
        var refusedPages = 0
        /// Of frames that were not answered in time.
        var unansweredPages = 0
        /// Times a gate has shut.
        var closures: Int { diskClosures + snapshotClosures }
        var diskClosures = 0
        var snapshotClosures = 0
    }

    /// A receiver whose storage says nothing for so long is not waited for.
    static let silenceMs = 5_000.0
    /// How long the stopped guest waits for answers; then what is unanswered travels.
    static let fencePatienceMs = 20.0

    private let terms: SourceReferences?
    private(set) var frame = PageBuffer(byteCount: ReferencePayload.bytesMax)
    private(set) var counts = Counts()
    private var matches = InlineArray<64, Match>(repeating: Match())
    private var matchCount = 0
    /// Bit n: the nth match is in a frame.
    private var placed: UInt64 = 0
    private var number: UInt32 = 0
    private var waiting: [Waiting] = []
    private var heard = Instant.now()
    private var pace = LookupPace()
    private var diskGate = ReferenceGate()
    private var snapshotGate = ReferenceGate()

    init(_ terms: SourceReferences?) {
        self.terms = terms
        waiting.reserveCapacity(Limits.referencesInFlight)
    }

    func isOn() -> Bool { terms != nil }
    func isWaiting() -> Bool { !waiting.isEmpty }
    func hasRoom() -> Bool { waiting.count < Limits.referencesInFlight }
    func isSilent() -> Bool { isWaiting() && Instant.now().ms(since: heard) > Self.silenceMs }
    func waitingPages() -> Int { waiting.reduce(0) { $0 + $1.count } }

    // MARK: What is found

    /// Looks for the content of a batch's pages; what is found goes into frames with ``nextFrame(_:)``.
    ///
    /// - Parameter readable: only these can be read again when the receiver refuses them.
    /// - Returns: slots of the pages found, as bits.
    mutating func search(_ batch: borrowing Batch, readable: PageRanges) -> UInt64 {
        matchCount = 0
        guard let terms, !terms.isClosed, batch.dataPages > 0 else { return 0 }
        let (onDisk, inSnapshot) = (diskGate.isOpen, snapshotGate.isOpen)
        diskGate.passed(pages: batch.dataPages)
        snapshotGate.passed(pages: batch.dataPages)
        guard onDisk || inSnapshot else { return 0 }
        func find(_ bytes: RawSpan, _ page: PageNumber) -> (place: UInt8, at: UInt32)? {
            terms.find(bytes, page, inSnapshot: inSnapshot, onDisk: onDisk)
        }
        var slots = match(batch, readable, step: pace.step, find)
        if slots != 0, pace.step > 1 { slots = match(batch, readable, step: 1, find) }
        pace.looked(pages: batch.dataPages, found: slots.nonzeroBitCount)
        return slots
    }

    /// Looks for one page in `step`.
    private mutating func match(
        _ batch: borrowing Batch, _ readable: PageRanges, step: Int,
        _ find: (RawSpan, PageNumber) -> (place: UInt8, at: UInt32)?
    ) -> UInt64 {
        matchCount = 0
        placed = 0
        // A page that goes out of a run's middle makes one run more.
        var room = Limits.batchRecords - batch.recordCount
        var slots: UInt64 = 0
        var slot = 0
        for index in 0..<batch.recordCount where batch.records[index].form != .zero {
            let record = batch.records[index]
            let isReadable = readable.contains(record.first)
            for page in record.first..<record.first + PageNumber(record.count) {
                defer { slot += 1 }
                guard isReadable, room > 0, slot % step == 0 else { continue }
                let bytes = batch.data.bytes.extracting(slot * Limits.pageBytes..<(slot + 1) * Limits.pageBytes)
                guard let found = find(bytes, page) else { continue }
                note(page, found, slot: slot, isNew: page == record.first)
                slots |= 1 << UInt64(slot)
                room -= 1
            }
        }
        return slots
    }

    /// - Parameter isNew: the page begins a record, and so perhaps a RAM block.
    private mutating func note(_ page: PageNumber, _ found: (place: UInt8, at: UInt32), slot: Int, isNew: Bool) {
        if !isNew, matchCount > 0, matches[matchCount - 1].continues(with: page, found) {
            matches[matchCount - 1].pages += 1
        } else {
            matches[matchCount] = Match(page: page, at: found.at, place: found.place, slot: UInt8(slot), pages: 1)
            matchCount += 1
        }
    }

    /// Puts the pages found of one place into ``frame``, with their proofs, and waits for the answer from now on.
    ///
    /// - Returns: the frame's length; nil: there are none left.
    mutating func nextFrame(_ batch: borrowing Batch) -> Int? {
        guard let terms, let first = (0..<matchCount).first(where: { placed & (1 << UInt64($0)) == 0 }) else {
            return nil
        }
        let place = matches[first].place
        number += 1
        var newest = Waiting(number: number, isSnapshot: place == 0)
        var entries = 0
        for index in first..<matchCount where matches[index].place == place {
            let match = matches[index]
            let (at, pages) = (Int(match.slot) * Limits.pageBytes, Int(match.pages))
            let digest = terms.key.digest(of: batch.data.bytes.extracting(at..<at + pages * Limits.pageBytes))
            ReferencePayload.store(
                .init(page: match.page, at: match.at, pages: pages, digest: digest), at: entries, in: &frame)
            entries += 1
            for page in 0..<pages { newest.add(match.page + PageNumber(page)) }
            placed |= 1 << UInt64(index)
        }
        ReferencePayload.store(.init(number: number, count: entries, place: place), in: &frame)
        if waiting.isEmpty { heard = Instant.now() }
        waiting.append(newest)
        return ReferencePayload.headBytes + entries * ReferencePayload.entryBytes
    }

    /// Calls `body` with each page of the newest frame.
    func eachPageOfFrame(_ body: (PageNumber) -> Void) {
        guard let last = waiting.last else { return }
        for index in 0..<last.count { body(last.pages[index]) }
    }

    // MARK: What becomes of it

    /// - Parameters:
    ///   - literalMs: how long the link takes for one page.
    ///   - refused: called with pages that have to travel.
    mutating func answered(
        _ answer: ReferenceAnswer, literalMs: Double, refused: (PageNumber) -> Void
    ) throws(FrameError) {
        guard answer.number <= number else { throw .badPayload(.referenceAnswer, "to frame \(answer.number)") }
        // It was given up.
        guard let index = waiting.firstIndex(where: { $0.number == answer.number }) else { return }
        let frame = waiting.remove(at: index)
        guard (answer.proved | answer.refused) & ~PageSet.mask(bit: 0, count: frame.count) == 0 else {
            throw .badPayload(.referenceAnswer, "more pages than asked")
        }
        heard = Instant.now()
        let (proved, wrong) = (answer.proved.nonzeroBitCount, answer.refused.nonzeroBitCount)
        counts.refusedPages += wrong
        let readMs = Double(answer.readNs) / 1e6
        if frame.isSnapshot {
            counts.snapshotPages += proved
            snapshotGate.answered(proved: proved, refused: wrong, readMs: readMs, literalMs: literalMs)
            counts.snapshotClosures = snapshotGate.closures
        } else {
            counts.diskPages += proved
            diskGate.answered(proved: proved, refused: wrong, readMs: readMs, literalMs: literalMs)
            counts.diskClosures = diskGate.closures
        }
        for place in 0..<frame.count where answer.refused & (1 << UInt64(place)) != 0 { refused(frame.pages[place]) }
    }

    /// The answers are not waited for: all pages have to travel. Said of pages whose answer is on its way, that costs
    /// their bytes and no more.
    mutating func giveUp(_ refused: (PageNumber) -> Void) {
        counts.unansweredPages += waitingPages()
        lose(refused)
    }

    /// The connection is lost, and the answers with it.
    mutating func lose(_ refused: (PageNumber) -> Void) {
        for frame in waiting { for place in 0..<frame.count { refused(frame.pages[place]) } }
        waiting.removeAll(keepingCapacity: true)
    }

    /// The receiver's storage is not to be used for a while.
    mutating func shut() {
        diskGate.shut()
        snapshotGate.shut()
        counts.diskClosures = diskGate.closures
        counts.snapshotClosures = snapshotGate.closures
    }
}
