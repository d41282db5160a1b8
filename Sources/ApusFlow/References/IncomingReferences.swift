internal import ApusCodec
internal import ApusContent
internal import ApusMemory
internal import ApusSystem
internal import ApusWire

/// One frame of references on its way through a worker, and room for its pages.
struct ReferenceParcel: ~Copyable, Sendable {
    var number: UInt32 = 0
    var place: UInt8 = 0
    var runs: [ContentRun] = []
    var pages = PageBuffer(byteCount: Limits.batchPages * Limits.pageBytes)
    /// Bit n: page n is in `pages`, and proved.
    var proved: UInt64 = 0
    var readNs: UInt64 = 0

    init() { runs.reserveCapacity(Limits.batchPages) }
}

/// The thread that reads and proves for one receiving lane, beside the link. It never touches guest RAM.
///
/// ```
///   lane -- due --> worker: reads in the disk's order, digests -- done --> lane: installs what is still wanted
///     ^------------------------------- idle -----------------------------------'
/// ```
final class ReferenceWorker: Sendable {
    let idle = BoundedQueue<ReferenceParcel>(capacity: Limits.referencesInFlight)
    let due = BoundedQueue<ReferenceParcel>(capacity: Limits.referencesInFlight)
    let done = BoundedQueue<ReferenceParcel>(capacity: Limits.referencesInFlight)
    let terms: DestinationReferences

    init(_ terms: DestinationReferences, lane: Int) throws(SystemError) {
        self.terms = terms
        for _ in 0..<Limits.referencesInFlight { _ = idle.send(ReferenceParcel()) }
        let (due, done) = (due, done)
        _ = try WorkerThread("apus-refer-\(lane)", nice: WorkerThread.background) {
            var reading = Reading(terms)
            while var parcel = due.receive() {
                reading.prove(&parcel)
                _ = done.sendIfRoom(parcel)
            }
        }
    }

    /// A read that hangs keeps its thread; nothing waits for it.
    func close() { for queue in [idle, due, done] { queue.close() } }

    private struct Reading: ~Copyable {
        private let terms: DestinationReferences
        private var image: ImageReader?
        private var snapshot: SnapshotReader?

        init(_ terms: DestinationReferences) {
            self.terms = terms
            image = terms.images.lazy.compactMap(\.self).first.map { ImageReader($0, terms.key) }
            snapshot = terms.snapshot.flatMap { SnapshotReader($0, terms.key) }
        }

        mutating func prove(_ parcel: inout ReferenceParcel) {
            let (began, queued) = (Instant.now(), Instant.threadQueuedNs())
            parcel.proved = parcel.place == 0 ? fromSnapshot(&parcel) : fromImage(&parcel)
            // A busy host is no slow storage: pages that travel wait for its CPUs too.
            let tookNs = Instant.now().ns - began.ns
            parcel.readNs = tookNs - min(tookNs, Instant.threadQueuedNs() - queued)
        }

        private mutating func fromImage(_ parcel: inout ReferenceParcel) -> UInt64 {
            guard let file = terms.images[Int(parcel.place) - 1] else { return 0 }
            image?.turn(to: file)
            let runs = parcel.runs
            return image?.prove(runs.span, into: &parcel.pages) ?? 0
        }

        private mutating func fromSnapshot(_ parcel: inout ReferenceParcel) -> UInt64 {
            var (proved, slot): (UInt64, Int) = (0, 0)
            for run in parcel.runs {
                if snapshot?.prove(run, into: &parcel.pages, at: slot * Limits.pageBytes) ?? false {
                    proved |= PageSet.mask(bit: slot, count: run.pages)
                }
                slot += run.pages
            }
            return proved
        }
    }
}

/// A receiving lane's side of references: checks what comes, hands it to the worker, and says what became of it.
struct IncomingReferences: ~Copyable, Sendable {
    private let layout: Layout
    private let share: LaneShare
    private let worker: ReferenceWorker?
    private(set) var answer = PageBuffer(byteCount: ReferenceAnswer.byteCount)

    init(_ terms: DestinationReferences?, _ layout: Layout, _ share: LaneShare) throws(SystemError) {
        self.layout = layout
        self.share = share
        if let terms { worker = try ReferenceWorker(terms, lane: share.lane) } else { worker = nil }
    }

    func close() { worker?.close() }

    /// Takes a frame of references.
    ///
    /// - Returns: the answer, when it can be given at once: there is no room, as long as earlier ones are read.
    mutating func accept(
        _ payload: RawSpan, _ replica: inout ReplicaMap, _ awaited: inout AwaitedPages
    ) throws(FrameError) -> ReferenceAnswer? {
        let head = try ReferencePayload.head(payload)
        guard let worker, head.place == 0 || Int(head.place) <= worker.terms.images.count else {
            throw .badPayload(.reference, "place \(head.place) was not agreed on")
        }
        try check(payload, head.count)
        // What the page holds is not known before it is installed: only a whole page may follow.
        var pages = 0
        for index in 0..<head.count {
            let entry = ReferencePayload.entry(payload, at: index)
            replica.forget(first: entry.page, count: entry.pages)
            awaited.supersede(first: entry.page, count: entry.pages)
            pages += entry.pages
        }
        guard var parcel = worker.idle.receiveIfAny() else {
            let all = PageSet.mask(bit: 0, count: pages)
            return ReferenceAnswer(number: head.number, proved: 0, refused: all, readNs: 0)
        }
        parcel.number = head.number
        parcel.place = head.place
        parcel.runs.removeAll(keepingCapacity: true)
        awaited.begin(head.number)
        for index in 0..<head.count {
            let entry = ReferencePayload.entry(payload, at: index)
            for page in 0..<entry.pages { awaited.add(entry.page + PageNumber(page)) }
            parcel.runs.append(ContentRun(at: entry.at, pages: entry.pages, digest: entry.digest))
        }
        _ = worker.due.sendIfRoom(parcel)
        return nil
    }

    private func check(_ payload: RawSpan, _ count: Int) throws(FrameError) {
        for index in 0..<count {
            let entry = ReferencePayload.entry(payload, at: index)
            let last = UInt64(entry.page) + UInt64(entry.pages) - 1
            // A reference is shorter than a stripe: it lies in two at most.
            guard last < UInt64(layout.pageCount), share.owns(entry.page), share.owns(PageNumber(last)) else {
                throw .badPayload(.reference, "pages \(entry.page) to \(last) are not expected here")
            }
        }
    }

    /// What the worker has finished; nil: nothing.
    func takeDone() -> ReferenceParcel? { worker?.done.receiveIfAny() }
    func giveBack(_ parcel: consuming ReferenceParcel) { _ = worker?.idle.sendIfRoom(parcel) }

    mutating func store(_ value: ReferenceAnswer) { value.store(in: &answer) }

    /// Installs those of a frame's pages that are due, in runs.
    func install<I: PageInstaller & ~Copyable>(
        _ parcel: borrowing ReferenceParcel, _ frame: AwaitedPages.Frame, _ due: UInt64, into installer: inout I
    ) throws(PayloadError) {
        var index = 0
        while index < frame.count {
            guard due & (1 << UInt64(index)) != 0 else {
                index += 1
                continue
            }
            let first = frame.pages[index]
            let block = layout.block(of: first)
            var count = 1
            // What follows may be the next block's first page.
            while index + count < frame.count, due & (1 << UInt64(index + count)) != 0,
                frame.pages[index + count] == first + PageNumber(count),
                layout.block(of: first + PageNumber(count)) == block
            { count += 1 }
            let from = index * Limits.pageBytes
            try installer.install(first: first, parcel.pages.bytes.extracting(from..<from + count * Limits.pageBytes))
            index += count
        }
    }
}
