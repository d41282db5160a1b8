internal import ApusCodec
public import ApusFabric
public import ApusMemory
public import ApusSystem
internal import ApusWire
internal import Synchronization

/// What a destination says while pages are missing there.
public enum PullEvent: Sendable, Equatable {
    /// Nothing is missing any more.
    case whole
    /// A connection to the source broke.
    case linkLost
    /// Pages cannot be installed, or the source does not keep to the protocol.
    case failed(FlowFailure)
}

/// A VM that runs here although pages of it are missing: whoever touches one waits until it has come.
///
/// ```
///   userfaultfd ──▶ fault thread ──▶ wanted ════▶ source         touched pages, and nothing else
///                        │                           │
///                        └─ a hole, not missing: zeros
///   urgent thread ◀═════ batches ════════════════════┤           each installs by UFFDIO_COPY, which never overwrites,
///   push thread   ◀═════ batches ════════════════════┘           and then settles the pages: their home is here. What
///                                                                is pushed goes into files only, so that its use shows
/// ```
///
/// What is missing stands in a file (``WordFile``), so that the successor of an agent that was killed goes on. A page that
/// guest RAM has is never missing, whatever the file says: it may have been installed a moment before the end.
public final class PullDestination: Sendable {
    public let layout: Layout
    private let pager: Pager
    private let words: WordFile
    private let report: @Sendable (PullEvent) -> Void
    private let reached: (@Sendable (PullStep) -> Void)?
    private let waited: @Sendable (UInt64) -> Void
    private let content = Monitor(PullState())
    private let isOver = Atomic(false)
    private let connections = PullConnections()
    /// The sending half of a new urgent connection, on its way to the fault thread.
    private let offered = Monitor<OneShot<FrameSender>?>(nil)
    private let isOffered = Atomic(false)

    /// After a fault the next one is looked for without sleeping: it comes soon, and waking up takes about as long as serving it.
    private static let spinMs = 0.05
    private static let sleepMs = 20

    /// Words that the file of a VM of this size has.
    public static func wordCount(_ layout: Layout) -> Int { max(1, (Int(layout.pageCount) + 63) / 64) }

    /// - Parameters:
    ///   - layout: the blocks that the source owns.
    ///   - pager: its areas are these blocks, in order.
    ///   - words: of ``wordCount(_:)``.
    ///   - reached: called at each of these steps; may block. nil: nobody wants to know.
    ///   - waited: told for each touch of a missing page how long it waited, nanoseconds; called from any thread; must not
    ///     block.
    ///   - report: called from any thread; must not block.
    public init(
        layout: Layout, pager: Pager, words: WordFile, reached: (@Sendable (PullStep) -> Void)? = nil,
        waited: @escaping @Sendable (_ ns: UInt64) -> Void,
        report: @escaping @Sendable (PullEvent) -> Void
    ) {
        precondition(words.wordCount == Self.wordCount(layout) && pager.areas.count == layout.blocks.count)
        self.layout = layout
        self.pager = pager
        self.words = words
        self.reached = reached
        self.waited = waited
        self.report = report
    }

    // MARK: The flip

    /// The source's last word on its memory; everything sent before is installed. The guest does not run yet.
    ///
    /// Empties what is missing, notes it, and from then on answers whoever touches it.
    /// - Parameter ports: the blocks of `layout`, in order.
    func flip(missing: PageSet, _ ports: [BlockPort]) throws(FlowFailure) {
        for index in 0..<missing.wordCount { words[index] = missing[word: index] }
        do throws(InjectionError) { try pager.arm() } catch {
            throw FlowFailure("pager", "Missing pages of the VM could not be watched: \(error).")
        }
        reached?(.armed)
        try empty(missing, ports)
        watchUse(ports)
        try begin(missing)
    }

    private func empty(_ missing: PageSet, _ ports: [BlockPort]) throws(FlowFailure) {
        var ofProcess: [Pager.Area] = []
        for (index, block) in layout.blocks.enumerated() {
            var page = block.firstPage
            let end = page + block.pageCount
            while let run = missing.nextRun(from: page, to: end) {
                page = run.upperBound
                let offset = UInt64(run.lowerBound - block.firstPage) * UInt64(Limits.pageBytes)
                let byteCount = UInt64(run.count) * UInt64(Limits.pageBytes)
                switch ports[index] {
                case .mapped(let window):
                    try wrap("install") { () throws(SystemError) in try window.punch(at: offset, byteCount: byteCount) }
                case .process(let window):
                    ofProcess.append(Pager.Area(address: window.address + offset, byteCount: byteCount))
                case .stream:
                    throw FlowFailure("install", "RAM block \(block.name) is not found on this host any more.")
                }
            }
        }
        do throws(InjectionError) { try pager.empty(ofProcess) } catch {
            throw FlowFailure("pager", "Missing pages of the VM could not be taken out of its memory: \(error).")
        }
    }

    /// Pushed pages go into files only, so that it shows which the guest uses. Of private memory it cannot be told.
    private func watchUse(_ ports: [BlockPort]) {
        let fillers = ports.compactMap { port in
            if case .mapped(let window) = port { try? window.makeFiller() } else { nil }
        }
        guard fillers.count == ports.count else { return }
        content.update { ($0.fillers, $0.pushed) = (fillers, PushedPages(pageCount: layout.pageCount)) }
    }

    /// What the guest has used of what was pushed.
    private func countUse() {
        guard let pushed = content.read({ $0.pushed }) else { return }
        var used = PageSet(pageCount: layout.pageCount)
        let layout = layout
        do throws(SystemError) {
            try pager.eachUsed { area, offset, byteCount in
                used.insert(
                    first: layout.blocks[area].firstPage + PageNumber(offset / UInt64(Limits.pageBytes)),
                    count: Int(byteCount / UInt64(Limits.pageBytes)))
            }
        } catch { return }
        let use = pushed.use(used)
        content.update { ($0.counts.use, $0.pushed, $0.fillers) = (use, nil, []) }
    }

    /// Goes on where an agent that was killed has stopped.
    ///
    /// - Parameter ports: the blocks of `layout`, in order.
    public func takeOver(_ ports: [BlockPort]) throws(FlowFailure) {
        var missing = PageSet(pageCount: layout.pageCount)
        for index in 0..<missing.wordCount { missing[word: index] = words[index] }
        // Of private memory what is there already comes once more, and is left alone.
        let layout = layout
        for run in try wrap("install", { () throws(SystemError) in try layout.dataRuns(ports.map(\.file)) }) {
            missing.remove(first: run.first, count: run.count)
        }
        try begin(missing)
    }

    private func begin(_ missing: PageSet) throws(FlowFailure) {
        let residence = Residence(missing: missing)
        content.update { content in
            content.residence = residence
            content.counts.missingAtFlip = UInt64(residence.missingCount)
            content.flipped = Instant.now()
        }
        try wrap("pager") { () throws(SystemError) in
            _ = try WorkerThread("apus-fault", rank: WorkerThread.watching) { [self] in serveFaults() }
        }
        sayWhole()
    }

    /// Takes the userfaultfd out of QEMU; only when nothing is missing. Blocks.
    public func leave() throws(InjectionError) {
        precondition(content.read { $0.residence?.isWhole ?? false }, "pages are missing")
        try pager.leave()
        stop()
    }

    /// Ends all threads and connections. The userfaultfd stays in QEMU: whoever touches a missing page waits.
    public func stop() {
        isOver.store(true, ordering: .relaxed)
        content.update { $0.isOver = true }
        connections.end()
    }

    /// The source has said what is missing, and all of that has come.
    public var isWhole: Bool { content.read { $0.residence?.isWhole ?? false } }
    /// The source has said what is missing.
    public var isFlipped: Bool { content.read { $0.residence != nil } }

    /// Without what touches have waited for.
    public func counts() -> PullCounts {
        content.read { content in
            var counts = content.counts
            counts.missing = UInt64(content.residence?.missingCount ?? 0)
            return counts
        }
    }

    /// Which pages are missing, for people: the first few runs, and how many pages there are in all.
    public func missingText() -> String {
        let (missing, count) = content.read { ($0.residence?.missing, $0.residence?.missingCount ?? 0) }
        guard let missing else { return "all pages" }
        var runs: [String] = []
        var page: PageNumber = 0
        while runs.count < 8, let run = missing.nextStripeRun(from: page, to: missing.pageCount) {
            page = run.first + PageNumber(run.count)
            runs.append(run.count == 1 ? "\(run.first)" : "\(run.first)-\(page - 1)")
        }
        return "\(count) pages: " + runs.joined(separator: ", ") + (page < missing.pageCount ? " …" : "")
    }

    // MARK: Connections

    /// Takes one of the source's two connections; a former one of the same kind is dropped.
    ///
    /// - Parameter wasLane: the source knows what is missing, and has begun to push.
    public func attach(_ connection: consuming Connection, wasLane: Bool = false) throws(SystemError) {
        let isUrgent = connection.hello.lane == PullServer.urgentLane
        try connections.begin(
            connection, isUrgent ? "apus-urgent" : "apus-pull", nice: isUrgent ? 0 : WorkerThread.background,
            rank: isUrgent ? WorkerThread.urgent : 0
        ) { [self] connection, isCurrent in
            do throws(FlowFailure) { try receive(connection, isUrgent: isUrgent, wasLane: wasLane) } catch {
                if isCurrent() { report(error == .linkLost ? .linkLost : .failed(error)) }
            }
        }
    }

    private func receive(
        _ connection: consuming Connection, isUrgent: Bool, wasLane: Bool
    ) throws(FlowFailure) {
        guard let missing = waitForFlip() else { return }
        var receiver = connection.receiver
        var sender: FrameSender? = connection.sender
        if isUrgent, let mine = sender.take() {
            let handed = OneShot(mine)
            offered.update { $0 = handed }
            isOffered.store(true, ordering: .releasing)
        } else if !wasLane {
            for piece in ResidencePayload.pieces(missing) { try Self.send(&sender, .residence, piece) }
        }
        let share = LaneShare(lane: 0, lanes: 1)
        var decoder = BatchDecoder(layout: layout, share)
        var replica = ReplicaMap(share)
        var installer = PullInstaller(self)
        var (bytes, frames): (UInt64, UInt64) = (0, 0)
        var credit = PageBuffer(byteCount: 16)
        while let frame = try Self.receive(&receiver) {
            guard frame.kind == .batch else {
                throw FlowFailure("peer", "The source sent a \(frame.kind) frame among missing pages.")
            }
            installer.way = isUrgent ? .asked : .pushed(isForeseen: frame.lane == PullServer.foreseenLane)
            try Self.install(&receiver, &decoder, &replica, &installer)
            bytes += UInt64(FrameHeader.byteCount + frame.length)
            frames += 1
            let frameBytes = UInt64(FrameHeader.byteCount + frame.length)
            content.update { $0.counts.wireBytes += frameBytes }
            if !isUrgent { try Self.credit(&sender, bytes, frames, &credit) }
            sayWhole()
        }
        throw .linkLost
    }

    /// What is missing at the flip, or now, if it has been; nil: it is over.
    private func waitForFlip() -> PageSet? {
        content.wait { $0.isOver ? .some(nil) : $0.residence.map { .some($0.missing) } } ?? nil
    }

    private static func receive(_ receiver: inout FrameReceiver) throws(FlowFailure) -> FrameHeader? {
        do throws(FabricError) { return try receiver.receive() } catch { throw broken(error) }
    }

    private static func send(
        _ sender: inout FrameSender?, _ kind: FrameKind, _ bytes: [UInt8]
    ) throws(FlowFailure) {
        do throws(FabricError) { _ = try sender?.send(kind, lane: PullServer.pushLane, bytes.rawBytes) } catch {
            throw broken(error)
        }
    }

    private static func credit(
        _ sender: inout FrameSender?, _ bytes: UInt64, _ frames: UInt64, _ credit: inout PageBuffer
    ) throws(FlowFailure) {
        ReceiveLane.store(bytes, frames, in: &credit)
        do throws(FabricError) { _ = try sender?.send(.credit, lane: PullServer.pushLane, credit.bytes) } catch {
            throw broken(error)
        }
    }

    private static func install(
        _ receiver: inout FrameReceiver, _ decoder: inout BatchDecoder, _ replica: inout ReplicaMap,
        _ installer: inout PullInstaller
    ) throws(FlowFailure) {
        do throws(PayloadError) { _ = try decoder.decode(receiver.payload, &replica, into: &installer) } catch {
            if case .install(let text) = error {
                throw FlowFailure("install", "Missing pages could not be installed: \(text).")
            }
            throw FlowFailure("peer", "The source sent missing pages that are not valid: \(error).")
        }
    }

    private static func broken(_ error: FabricError) -> FlowFailure {
        error.isLoss ? .linkLost : FlowFailure("link", "A connection for missing pages broke: \(error)")
    }

    private func sayWhole() {
        let isNews = content.update { content in
            guard content.residence?.isWhole == true, !content.saidWhole, !content.isOver else { return false }
            content.saidWhole = true
            content.counts.wholeMs = Instant.now().ms(since: content.flipped)
            return true
        }
        guard isNews else { return }
        countUse()
        report(.whole)
    }

    // MARK: Installing

    /// Installs those pages of a run that are missing; `bytes` nil: zeros.
    func install(_ first: PageNumber, _ count: Int, _ bytes: RawSpan?, _ way: PullWay) throws(SystemError) {
        guard let index = layout.block(of: first) else { preconditionFailure("the decoder checked the page") }
        let start = layout.blocks[index].firstPage
        var done = 0
        while done < count {
            let page = first + PageNumber(done)
            // Not what is here already: the guest may have given it back meanwhile, and must not see it again.
            let (run, filler) = content.read { content in
                (
                    content.residence?.missing.uniformRun(from: page, count: count - done),
                    way == .asked || content.fillers.isEmpty ? nil : content.fillers[index]
                )
            }
            guard let run else { return }
            defer { done += run.count }
            guard run.inSet else { continue }
            let offset = UInt64(page - start) * UInt64(Limits.pageBytes)
            let byteCount = run.count * Limits.pageBytes
            let from = done * Limits.pageBytes
            let part = bytes?.extracting(from..<from + byteCount)
            if let filler {
                try filler.fill(at: offset, part, byteCount: byteCount)
                reached?(.filled)
                // Whoever begins to wait after this was settled is told of as a page that is not missing, and is let go on.
                settle(page, run.count, way)
                reached?(.settled)
                pager.wake(index, at: offset, byteCount: byteCount)
                continue
            }
            if let part {
                try pager.fill(index, at: offset, part)
            } else {
                try pager.fillZero(index, at: offset, byteCount: byteCount)
            }
            settle(page, run.count, way)
        }
    }

    private func settle(_ first: PageNumber, _ count: Int, _ way: PullWay) {
        content.update { $0.settle(first, count, way, waited) { words[$0] = $1 } }
    }

    // MARK: Faults

    private func serveFaults() {
        var faults = WantedList(layout)
        var lastFault = Instant.now()
        while !isOver.load(ordering: .relaxed) {
            if isOffered.exchange(false, ordering: .acquiring), let box = offered.update({ $0.take() }),
                let sender = box.take()
            {
                faults.sender = consume sender
                faults.forgetAsked()
                // What was asked for on the former connection may be lost.
                for page in content.read({ $0.waiting.map(\.page) }) { ask(page, &faults) }
                faults.send()
            }
            let isBusy = Instant.now().ms(since: lastFault) < Self.spinMs
            let count: Int
            do throws(SystemError) {
                count = try pager.takeFaults(waitMs: isBusy ? 0 : Self.sleepMs) { area, offset in
                    faults.touched.append(
                        layout.blocks[area].firstPage + PageNumber(offset / UInt64(Limits.pageBytes)))
                }
                guard count > 0 else { continue }
                lastFault = Instant.now()
                for page in faults.touched { try handle(page, lastFault, &faults) }
            } catch {
                // Its QEMU has gone; whoever watches that tells.
                return
            }
            faults.touched.removeAll(keepingCapacity: true)
            faults.send()
        }
    }

    private func handle(_ page: PageNumber, _ now: Instant, _ faults: inout WantedList) throws(SystemError) {
        let isMissing = content.update { content in
            guard content.residence?.home(of: page) == .source else { return false }
            if !content.waiting.contains(where: { $0.page == page }) {
                content.waiting.append(.init(page: page, since: now))
            }
            return true
        }
        if isMissing { return ask(page, &faults) }
        guard let index = layout.block(of: page) else { return }
        // Never used by the guest, or given back by it; or it has come while this was on its way.
        let offset = UInt64(page - layout.blocks[index].firstPage) * UInt64(Limits.pageBytes)
        try pager.fillZero(index, at: offset, byteCount: Limits.pageBytes)
    }

    private func ask(_ page: PageNumber, _ faults: inout WantedList) {
        if faults.sender != nil { faults.note(page) }
    }
}
