internal import ApusFabric
internal import ApusMemory
internal import ApusSystem
internal import ApusWire

/// The stream port of a source: reads what QEMU writes into the migration socket and gives pages to the lanes, and
/// everything else to lane 0: its window is open when the guest stands still. Runs on its own thread.
///
/// ```
///   QEMU ==> reader --- header, commands, block list ---> control, epoch 0; then the layout, with which lanes begin
///                  |--- pages, by page number ---> lane 0, lane 1 ...
///                  |      `--- hot pages wait in HeldPages, until they cool or the guest is stopped
///                  `--- device state ---> lane 0
///   END of RAM:    lanes get fence 1;    what follows goes with epoch 1: written only when all lanes have passed it
/// ```
///
/// With a direct source what is used of QEMU's stream are the small blocks (ROMs) and the device state, and all of it goes
/// to lane 0; END of RAM means that the guest is stopped, and is when the direct source scans for the last time.
///
/// ```
///   a block is       in QEMU's stream      here
///   left out         never                 a page of it ends the migration      owned by the direct source
///   dropped          as private memory     nothing                              owned by the direct source
///   forwarded        yes, at least once    to control
///
///   QEMU   first pass, dropped block ============-- hold ~~~~~~~~~~ gate ==== rest, rounds, STOP, END
/// ```
///
/// With nothing left to send QEMU stops the guest, whoever else is ready. So its first pass over a dropped block is held
/// shortly before its end, by not reading on, until the gate opens.
struct StreamSource: ~Copyable, Sendable {
    private let qemu: Socket
    let lanes: [LaneQueue]
    let control: ControlOutlet
    private let counters: LaneCounters
    let direct: DirectPages?
    private let report: @Sendable (SourceFlowEvent) -> Void
    var reader = QemuStreamReader()
    private var buffer = PageBuffer(byteCount: 512 << 10)
    private(set) var layout: Layout?
    /// The batch that is being filled for each lane.
    private var open: BatchSlots
    /// Bytes that wait to go to the destination's QEMU.
    var pending: [UInt8] = []
    var epoch: UInt32 = 0
    var fenceSent: UInt32 = 0
    var part = RamPart.none
    private var ramSection: UInt32 = 0
    private(set) var layoutAnnounced = false
    /// QEMU's ways through all of RAM: page numbers start anew.
    private(set) var round = 1
    private var lastPage: PageNumber = 0

    /// The pages that do not come through QEMU's stream.
    struct DirectPages: Sendable {
        let memory: DirectMemory
        let orders: DirectOrders
    }
    /// A PART section of RAM. What is to be passed on of it begins with its first forwarded page: nothing, mostly.
    enum RamPart {
        case none
        case silent(head: [UInt8])
        case forwarded

        var isSilent: Bool { if case .silent = self { true } else { false } }
    }
    /// What becomes of a block's pages beside a direct source; see above.
    enum Fate {
        case leftOut, dropped
        case forwarded(isSent: Bool)
    }
    /// One per block; with a direct source only.
    var fates: [Fate] = []
    /// Where QEMU is held; nil: nowhere, or no longer.
    var qemuHold: (block: Int, offset: UInt64)?
    /// What QEMU still has to send of a dropped block when it is held: more than it would stop the guest for.
    static let heldBytes: UInt64 = 32 << 20

    /// What decides how many hot pages are kept back, and who is told.
    struct Hold: Sendable {
        let maxDowntimeMs: Double
        /// They know the link.
        let lanes: [LaneCounters]
        let counters: HoldCounters
    }
    private let hold: Hold?
    /// nil: none are kept back, or the layout is not known yet.
    private var held: HeldPages?
    /// When pages begin to stay; nil: never.
    let keepOrder: KeepOrder?
    /// nil: all pages travel, as yet.
    var kept: KeptPages?

    static let streamFrameBytes = FrameHeader.lengthMax(of: .stream)

    init(
        _ qemu: Socket, _ lanes: [LaneQueue], _ control: ControlOutlet, _ counters: LaneCounters, direct: DirectPages?,
        hold: Hold?, keep: KeepOrder?, _ report: @escaping @Sendable (SourceFlowEvent) -> Void
    ) {
        self.qemu = qemu
        self.direct = direct
        self.hold = hold
        keepOrder = keep
        self.lanes = lanes
        self.control = control
        self.counters = counters
        self.report = report
        open = BatchSlots(count: lanes.count)
        pending.reserveCapacity(2 * Self.streamFrameBytes)
    }

    /// Runs until QEMU closes the socket.
    mutating func run() throws(FlowFailure) {
        var start = 0
        var end = 0
        while true {
            if start == end { (start, end) = (0, 0) }
            // Room for the longest element; most reads find an empty buffer.
            if buffer.byteCount - end < 64 << 10 {
                buffer.copyWithin(from: start, to: 0, end - start)
                (start, end) = (0, end - start)
            }
            let count = try readSome(end)
            counters.cpuNs.set(Instant.threadCPUNs())
            if count == 0 { return try finish(left: end - start) }
            end += count
            if let keepOrder, keepOrder.isGiven { try beginKeeping() }
            start += try consume(start..<end)
            if reader.isOpaque { try flushPending() }
        }
    }

    private mutating func readSome(_ end: Int) throws(FlowFailure) -> Int {
        do throws(SystemError) { return try qemu.read(into: &buffer, end..<buffer.byteCount) } catch {
            throw FlowFailure("qemu-stream", "The migration socket of the source QEMU broke: \(error).")
        }
    }

    private mutating func finish(left: Int) throws(FlowFailure) {
        do throws(StreamError) { try reader.finish(left: left) } catch {
            throw FlowFailure("qemu-stream", "\(error)")
        }
        try flushPending()
        report(.streamEnded)
    }

    /// Handles every whole element in the range; returns the bytes consumed.
    private mutating func consume(_ range: Range<Int>) throws(FlowFailure) -> Int {
        var at = range.lowerBound
        while at < range.upperBound {
            let step = try Self.next(&reader, buffer, at..<range.upperBound)
            guard case .element(let element, let length) = step else { break }
            try handle(element, at..<at + length)
            at += length
            if case .end = element, length == 0 { break }
        }
        return at - range.lowerBound
    }

    @inline(__always)
    private static func next(
        _ reader: inout QemuStreamReader, _ buffer: borrowing PageBuffer, _ range: Range<Int>
    ) throws(FlowFailure) -> QemuStreamReader.Step {
        do throws(StreamError) { return try reader.next(buffer.bytes.extracting(range)) } catch {
            throw FlowFailure("qemu-stream", "\(error)")
        }
    }

    private mutating func handle(_ element: StreamElement, _ range: Range<Int>) throws(FlowFailure) {
        switch element {
        case .page(let block, let offset) where direct != nil, .zero(let block, let offset) where direct != nil:
            try besideDirect(block, offset, range)
        case .page(let block, let offset):
            let number = try number(block, offset)
            if kept?.keep(number, of: block) ?? false { return }
            let bytes = range.upperBound - Limits.pageBytes..<range.upperBound
            if Self.keep(&held, number, buffer, bytes) { return }
            try travel(number, startsBlock: offset == 0, bytes)
        case .zero(let block, let offset):
            let number = try number(block, offset)
            held?.cancel(number)
            kept?.letGo(number, of: block)
            try travel(number, startsBlock: offset == 0, nil)
        case .blockList:
            try learnLayout()
            forward(range)
        case .sectionStart(let head):
            if head.kind == .ram { ramSection = head.id }
            forward(range)
        case .sectionPart(_, kind: .ram):
            part = .silent(head: bytes(range))
        case .sectionEnd(_, kind: .ram):
            if keepOrder?.keepsAtEnd ?? false { try beginKeeping() }
            beginPass()
            try flushPending()
            epoch += 1
            countHeld()
            held?.close()
            report(.lastRoundBegan)
            direct?.orders.beginLast()
            forward(range)
        case .sectionFull where reader.isOpaque:
            try finishDirect()
            try finishKeeping()
            try sendFence()
            forward(range)
        case .endOfRecords:
            try flushBatches()
            if !part.isSilent { forward(range) }
        case .footer:
            if !part.isSilent { forward(range) }
            part = .none
            try announceLayout()
            try flushPending()
        case .xbzrle, .compressed, .multifdFlush:
            throw FlowFailure(
                "qemu-stream",
                "The source QEMU uses xbzrle, compress or multifd, which Apus replaces. "
                    + "Switch these capabilities off with migrate-set-capabilities and try again.")
        case .command(.postcopyAdvise), .command(.postcopyListen), .command(.postcopyRun), .command(.postcopyDiscard),
            .command(.packaged), .command(.postcopyResume), .command(.receiveBitmap), .packageEnd:
            throw FlowFailure(
                "qemu-stream",
                "The source QEMU has postcopy-ram on, which this release of Apus does not carry. "
                    + "Switch it off with migrate-set-capabilities and try again.")
        case .header, .configuration, .command, .sectionPart, .sectionEnd, .sectionFull, .bitmapChunk,
            .deviceBytes, .endOfFile, .vmDescription, .vmDescriptionBytes:
            forward(range)
        case .end:
            break
        }
    }

    // MARK: Pages

    @inline(__always)
    private mutating func number(_ block: Int, _ offset: UInt64) throws(FlowFailure) -> PageNumber {
        guard let layout else {
            throw FlowFailure("qemu-stream", "The source QEMU sent a page before its list of RAM blocks.")
        }
        let number = layout.blocks[block].firstPage + PageNumber(offset / UInt64(Limits.pageBytes))
        if number < lastPage { beginPass() }
        lastPage = number
        if held?.beginsPass(number) ?? false { try endPass() }
        return number
    }

    private mutating func beginPass() {
        round += 1
        kept?.beginPass()
    }

    /// - Parameter data: where in the buffer the page is; nil: all zeros.
    @inline(__always)
    private mutating func travel(_ page: PageNumber, startsBlock: Bool, _ data: Range<Int>?) throws(FlowFailure) {
        let lane = laneIndex(of: page, lanes: lanes.count)
        try Self.makeRoom(&open, lanes, page, data == nil ? .zero : .raw, startsBlock: startsBlock, lane)
        if let data {
            Self.add(&open, page, buffer, data, startsBlock: startsBlock, lane)
            if open.isFull(lane) { try flush(lane) }
        } else {
            open.addZero(page, startsBlock: startsBlock, lane)
        }
    }

    @inline(__always)
    private static func makeRoom(
        _ open: inout BatchSlots, _ lanes: [LaneQueue], _ page: PageNumber, _ form: Form, startsBlock: Bool, _ lane: Int
    ) throws(FlowFailure) {
        if !open.accepts(page, form, startsBlock: startsBlock, lane) { try flush(&open, lanes, lane) }
        try open.fill(lane, from: lanes[lane])
    }

    @inline(__always)
    private static func add(
        _ open: inout BatchSlots, _ page: PageNumber, _ buffer: borrowing PageBuffer, _ range: Range<Int>,
        startsBlock: Bool, _ lane: Int
    ) {
        open.add(page, buffer.bytes.extracting(range), startsBlock: startsBlock, lane)
    }

    // MARK: Hot pages

    @inline(__always)
    private static func keep(
        _ held: inout HeldPages?, _ page: PageNumber, _ buffer: borrowing PageBuffer, _ range: Range<Int>
    ) -> Bool {
        held?.take(page, buffer.bytes.extracting(range)) ?? false
    }

    private mutating func endPass() throws(FlowFailure) {
        guard let hold else { return }
        let linkBytesPerS = hold.lanes.reduce(0.0) { $0 + Double($1.linkBytesPerS.now) }
        held?.endPass(pausePages: linkBytesPerS * hold.maxDowntimeMs / 1000 / Double(Limits.pageBytes))
        try releaseHeld()
        countHeld()
    }

    private mutating func releaseHeld() throws(FlowFailure) {
        guard let layout else { return }
        try Self.release(&held, &kept, &open, lanes, layout)
    }

    /// No page is held back any more.
    mutating func stopHolding() throws(FlowFailure) {
        held?.close()
        try releaseHeld()
        hold?.counters.coldPages.set(0)
        countAbsorbed()
        held = nil
    }

    private static func release(
        _ held: inout HeldPages?, _ kept: inout KeptPages?, _ open: inout BatchSlots, _ lanes: [LaneQueue],
        _ layout: Layout
    ) throws(FlowFailure) {
        try held?.release { (page, bytes) throws(FlowFailure) in
            guard let block = layout.block(of: page) else { preconditionFailure("held pages are of the VM") }
            if kept?.keep(page, of: block) ?? false { return }
            let lane = laneIndex(of: page, lanes: lanes.count)
            let startsBlock = layout.blocks[block].firstPage == page
            try makeRoom(&open, lanes, page, .raw, startsBlock: startsBlock, lane)
            open.add(page, bytes, startsBlock: startsBlock, lane)
            if open.isFull(lane) { try flush(&open, lanes, lane) }
        }
    }

    private func countHeld() {
        guard let hold else { return }
        switch held {
        case .some(let held):
            hold.counters.heldPages.set(UInt64(held.count))
            hold.counters.coldPages.set(UInt64(held.coldCount))
        case .none: break
        }
        countAbsorbed()
    }

    private func countAbsorbed() {
        guard let hold else { return }
        switch held {
        case .some(let held): hold.counters.absorbedPages.set(UInt64(held.absorbedPages))
        case .none: break
        }
    }

    // MARK: Batches

    private mutating func flush(_ lane: Int) throws(FlowFailure) { try Self.flush(&open, lanes, lane) }

    private static func flush(_ open: inout BatchSlots, _ lanes: [LaneQueue], _ lane: Int) throws(FlowFailure) {
        guard let batch = open.take(lane) else { return }
        if lanes[lane].queue.send(.batch(batch)) != nil { throw FlowFailure("link", "Lane \(lane) has stopped.") }
    }

    mutating func flushBatches() throws(FlowFailure) {
        for lane in 0..<lanes.count { try flush(lane) }
    }

    mutating func sendFence() throws(FlowFailure) {
        guard fenceSent < epoch else { return }
        try releaseHeld()
        countAbsorbed()
        try flushBatches()
        fenceSent = epoch
        for lane in 0..<lanes.count where lanes[lane].queue.send(.fence(epoch)) != nil {
            throw FlowFailure("link", "Lane \(lane) has stopped.")
        }
    }

    // MARK: Everything else

    mutating func forward(_ range: Range<Int>) { pending.append(contentsOf: bytes(range)) }

    private func bytes(_ range: Range<Int>) -> [UInt8] { buffer.bytes.extracting(range).bytesCopied }

    mutating func flushPending() throws(FlowFailure) {
        // END itself, some bytes, waits for the fence like what follows: lanes write into QEMU's stream too. Not so beside a
        // direct source, where it brings what was written last of small blocks.
        if direct == nil && fenceSent < epoch { return }
        var at = 0
        while at < pending.count {
            let next = min(at + Self.streamFrameBytes, pending.count)
            try pass(.init(.stream, epoch: fenceSent, Array(pending[at..<next])))
            at = next
        }
        pending.removeAll(keepingCapacity: true)
    }

    private mutating func learnLayout() throws(FlowFailure) {
        guard layout == nil else {
            throw FlowFailure("qemu-stream", "The source QEMU sent its list of RAM blocks twice.")
        }
        guard reader.ignoresShared == (direct != nil) else {
            throw FlowFailure(
                "qemu-stream",
                "Somebody has changed QEMU's capability x-ignore-shared while it was being migrated. Migrate again.")
        }
        do throws(LayoutError) {
            let layout = try Layout(reader.blocks.map { ($0.name, $0.usedLength) })
            if hold != nil { held = HeldPages(pageCount: layout.pageCount) }
            self.layout = layout
        } catch { throw FlowFailure("qemu-stream", "The RAM blocks of the source QEMU are not usable: \(error).") }
        if let direct, let layout { try decideFates(direct.memory, layout) }
    }

    /// After the START section, so that the destination's QEMU has read it before anything is installed.
    private mutating func announceLayout() throws(FlowFailure) {
        guard let layout, !layoutAnnounced else { return }
        if direct != nil { return layoutAnnounced = true }
        try flushPending()
        try say(.init(.layout, epoch: ramSection, LayoutPayload.bytes(layout)))
        layoutAnnounced = true
        report(.layoutKnown(layout))
        guard let keepOrder, keepOrder.isGiven else { return }
        try beginKeeping()
        report(.converged(predictedDowntimeMs: SwitchGate.fixedMs))
    }
}
