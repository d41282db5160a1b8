internal import ApusFabric
internal import ApusMemory
internal import ApusSystem
internal import ApusWire

/// The direct port of a source: reads guest RAM from its file, in rounds that it times itself. Runs on its own thread.
///
/// ```
///   attach: everything is write-protected, so every write from now on is reported
///   round 1   pages that the file has                         (a hole is zero at the destination already)
///   round n   scan: written since the last scan, protected again in one step -> ready, held
///             ready travels, held waits                        rounds shrink; the gate looks after every scan
///             pages are counted in between, so the curve of the guest's writing is known when the first pass ends
///   ladder    a guest that is too fast is slowed down, or what is left is fetched afterwards; see SwitchGate
///   gate      report(.converged); QEMU is told to migrate its device state and stops the guest by itself. If it sends
///             pages too it migrates from the beginning, and is let go on to its end now
///   last      guest stopped, I/O drained: scan, everything travels, then fence, then device state
/// ```
///
/// A page is copied while the guest may be writing to it. That is harmless: the write is reported by the next scan,
/// because the scan protected the page before it was copied.
struct DirectSource: ~Copyable {
    let memory: DirectMemory
    private let lanes: [LaneQueue]
    private let counters: [LaneCounters]
    private let own: LaneCounters
    private let control: ControlOutlet
    let orders: DirectOrders
    let progress: RoundCounters
    let report: @Sendable (SourceFlowEvent) -> Void
    let layout: Layout
    private var open: BatchSlots
    var rounds: DirtyRounds
    var gate: SwitchGate
    var looks: RoundLooks
    private var ratio: EncodingRatio
    private let maxDowntimeMs: Double
    private let pull: FlowOptions.Pull
    let record: RecordOptions?
    /// Pages that have travelled; kept only where the guest may move before all have.
    var sent: PageSet
    let brake: Brake?
    /// What is left when the guest stops is fetched.
    private var handsOver: Bool
    /// nil: no page is held back.
    private var room: HoldRoom?
    private let closing: Closing

    /// A guest whose dirty pages do not get fewer is scanned this seldom: every scan makes it fault once per page.
    static let steadyRoundMs = 500.0
    /// QEMU's answer to being told to migrate. A vCPU that stands may hold what it takes for that.
    private static let replyMs = 7.0
    init(
        _ memory: DirectMemory, _ lanes: [LaneQueue], _ counters: [LaneCounters], own: LaneCounters,
        _ control: ControlOutlet, _ orders: DirectOrders, _ progress: RoundCounters, _ options: FlowOptions,
        _ report: @escaping @Sendable (SourceFlowEvent) -> Void
    ) {
        self.memory = memory
        self.lanes = lanes
        self.counters = counters
        self.own = own
        self.control = control
        self.orders = orders
        self.progress = progress
        self.report = report
        layout = memory.layout
        open = BatchSlots(count: lanes.count)
        rounds = DirtyRounds(pageCount: memory.layout.pageCount)
        maxDowntimeMs = options.maxDowntimeMs
        pull = options.pull
        record = options.record
        sent = PageSet(pageCount: memory.layout.pageCount)
        handsOver = pull == .rest
        brake = options.brake
        looks = RoundLooks(brake)
        ratio = EncodingRatio(changedBytesPerPage: options.againBytesPerPage)
        room = options.holdsHotPages ? HoldRoom() : nil
        closing = .of(memory)
        gate = SwitchGate(
            maxDowntimeMs: options.maxDowntimeMs, ladder: options.ladder, fixedMs: options.fixedDowntimeMs,
            history: options.history)
    }

    /// Runs until the guest is stopped and all its memory is queued, or until the flow is over.
    mutating func run() throws(FlowFailure) {
        guard control.send(.init(.layout, LayoutPayload.bytes(layout))) else {
            throw FlowFailure("link", "The control connection to the destination is closed.")
        }
        report(.layoutKnown(layout))
        progress.round.set(1)
        if pull == .everything { return try handOver() }
        // What was requested before the tracker was there is finished before the first page is read.
        if try stopRequests() { try resumeGuest() }
        try forgetWritten()
        _ = looks.close()
        guard try sendAllData() else { return try moveNow() }
        waitForLanes()
        var waitMs = 0.0
        var lastReady = Int.max
        var isOpen = false
        while true {
            own.cpuNs.set(Instant.threadCPUNs())
            switch try nextOrder(afterMs: waitMs) {
            case .over: return
            case .last: return try finish()
            case .round: break
            }
            progress.round.add(1)
            let limit = holdLimit()
            let wasStopped = try stopRequests()
            var look = looks.close()
            let written: Int
            do throws(FlowFailure) { written = try scan(holdLimit: limit) } catch {
                // The job may be over already, and nobody else resumes the guest then.
                if wasStopped { try? resumeGuest() }
                throw error
            }
            if wasStopped { try resumeGuest() }
            let perS = Double(written) / max(look.spanMs, 0.1) * 1000
            progress.dirtyPagesPerS.set(UInt64(perS))
            progress.heldPages.set(UInt64(rounds.heldCount))
            look.pages = Double(written)
            saw(look)
            let sample = sample(pagesPerS: perS)
            let predictedMs = gate.forecast(sample).downtimeMs
            progress.predictedDowntimeUs.set(UInt64(predictedMs * 1000))
            if orders.isHurried && !isOpen { return try moveNow() }
            let isShrinking = Double(rounds.readyCount) < SwitchGate.shrink * Double(lastReady)
            // What does not get less by another round is fetched.
            let decision = isOpen ? .wait : pull == .rest && !isShrinking ? .handOver : gate.decide(sample)
            if case .slowDown(let share) = decision { slowDown(share) }
            note(decision, gate.shortfall(sample))
            if decision == .refuse { return }
            lastReady = max(rounds.readyCount, 1)
            if decision == .open, case .throughRound = sample.standing { letStand(fullyForMs: maxDowntimeMs) }
            // What is written again and again is not sent once more before it is fetched.
            if decision == .handOver && pull != .rest { rounds.putBack() } else { try sendReady(untilDue: isOpen) }
            waitForLanes()
            if decision == .open || decision == .handOver {
                isOpen = true
                handsOver = handsOver || decision == .handOver
                if !handsOver, sample.standing != .no { letStand(fullyForMs: Self.replyMs) }
                report(.converged(predictedDowntimeMs: handsOver ? gate.fixedMs : predictedMs))
            }
            // A guest that stands still half the time is not let wait.
            waitMs =
                isOpen
                ? handsOver && pull == .ifNeeded ? .infinity : closing.roundMs ?? .infinity
                : isShrinking || gate.slowed > 0 ? 0 : Self.steadyRoundMs - looks.sinceScanMs
        }
    }

    /// QEMU has stopped the guest and finished its requests.
    private mutating func finish() throws(FlowFailure) {
        brake?.release()
        let hot = rounds.held
        try scan(holdLimit: 0)
        if handsOver {
            noteWritten([hot, rounds.ready])
            return orders.finished(rest: rounds.ready)
        }
        try sendReady()
        // Even when it is empty: the destination waits for it.
        orders.finished(rest: pull == .ifNeeded ? PageSet(pageCount: layout.pageCount) : nil)
    }

    private func note(_ decision: SwitchGate.Decision, _ shortfall: Shortfall) {
        progress.writing.update { $0.shortfall = shortfall }
        if decision != .wait { report(.decided(decision, shortfall)) }
    }

    private func slowDown(_ share: Double) {
        do { try brake?.set(share) } catch {
            // It runs on as fast as it did, and the gate takes the next rung.
            brake?.release()
        }
    }

    /// Until QEMU has stopped the guest.
    private func letStand(fullyForMs: Double) {
        // Where it fails the guest runs on, and the last round is longer.
        do { try brake?.stand(fullyForMs: fullyForMs) } catch { brake?.release() }
    }

    // MARK: What travels

    /// Pages that the file has; a hole is zero at the destination already.
    func dataRuns() throws(FlowFailure) -> [(first: PageNumber, count: Int)] {
        do { return try layout.dataRuns(memory.windows) } catch {
            throw FlowFailure("direct", "The pages that the guest has cannot be told: \(error).")
        }
    }

    /// - Returns: false: the guest must move before all has travelled.
    private mutating func sendAllData() throws(FlowFailure) -> Bool {
        let all = try dataRuns()
        var left = all.reduce(into: UInt64(0)) { $0 += UInt64($1.count) }
        progress.remainingPages.set(left)
        progress.dataPages.set(left)
        var mustMove = false
        pass: for range in all {
            var page = range.first
            let end = range.first + PageNumber(range.count)
            while page < end {
                // To the end of the stripe: one lane.
                let count = min(end, (page | 63) + 1) - page
                try send(page, Int(count))
                left -= UInt64(count)
                progress.remainingPages.set(left)
                page += count
                if orders.isOver { return true }
                try lookIfDue()
                mustMove = orders.isHurried || gate.mustHandOver(elapsedMs: looks.elapsedMs)
                if mustMove { break pass }
            }
        }
        try flush()
        if mustMove && !orders.isHurried { note(.handOver, gate.shortfall(sample(pagesPerS: 0))) }
        return !mustMove
    }

    /// - Parameter untilDue: the guest may be stopped by now. Then what is left joins the last scan.
    private mutating func sendReady(untilDue: Bool = false) throws(FlowFailure) {
        var left = UInt64(rounds.readyCount + rounds.heldCount)
        let ready = rounds.ready
        try ready.forEachStripeRun { (first, count) throws(FlowFailure) in
            if untilDue && orders.isDue { return rounds.insert(first: first, count: count) }
            try send(first, count)
            left -= UInt64(count)
            progress.remainingPages.set(left)
            try lookIfDue()
        }
        progress.remainingPages.set(left)
        try flush()
    }

    /// A run within one stripe of 64 pages.
    mutating func send(_ first: PageNumber, _ count: Int) throws(FlowFailure) {
        guard let index = layout.block(of: first) else { preconditionFailure("the scan stays within the blocks") }
        let block = layout.blocks[index]
        let window = memory.windows[index]
        let lane = laneIndex(of: first, lanes: lanes.count)
        var done = 0
        while done < count {
            try open.fill(lane, from: lanes[lane])
            let page = first + PageNumber(done)
            let offset = UInt64(page - block.firstPage) * UInt64(Limits.pageBytes)
            let added = open.addRun(page, count: count - done, startsBlock: offset == 0, lane) { buffer, at, pages in
                window.copyOut(at: offset, byteCount: pages * Limits.pageBytes, to: &buffer, bufferOffset: at)
            }
            done += added
            if pull != .nothing { sent.insert(first: page, count: added) }
            if added == 0 || open.isFull(lane) { try flush(lane) }
        }
    }

    /// Waits until what was queued is on its way: a switch would have to wait for it, and the next round would measure
    /// the queues instead of the link.
    func waitForLanes() {
        func isBusy() -> Bool {
            lanes.contains { $0.backlog > 0 } || counters.contains { $0.waitingPages.now > 0 }
        }
        while !orders.isDue && isBusy() { pause(ms: 0.3) }
        // What the sockets and the link's queues still hold: what is not through when the guest stops is a part of its pause.
        let until = Instant.now().adding(ms: windowsMs)
        let untoldBytes = Double(lanes.count) * Double(ReceiveLane.creditBytes)
        while Instant.now() < until {
            let flow = flowSample()
            let restBytes = Double(flow.unconfirmedBytes) - untoldBytes
            guard restBytes > 0 else { return }
            // A lane without work does not hear of what was installed since.
            for lane in lanes { _ = lane.queue.sendIfRoom(.wake) }
            let restMs = restBytes / max(Double(flow.linkBytesPerS), 1) * 1000
            guard case .round = orders.next(afterMs: min(restMs, Self.hearingMs)) else { return }
        }
    }
    /// As long as the link takes for what its lanes may have in flight.
    private var windowsMs: Double {
        let bytesPerNs = max(Double(flowSample().linkBytesPerS), 1) / 1e9
        let lanes = Double(lanes.count)
        return min(lanes * SendLane.windowBytes(bytesPerNs: bytesPerNs / lanes) / bytesPerNs / 1e6, Self.windowsMsMax)
    }
    private static let windowsMsMax = 500.0
    private static let hearingMs = 1.0

    private mutating func flush(_ lane: Int) throws(FlowFailure) {
        guard let batch = open.take(lane) else { return }
        if lanes[lane].queue.send(.batch(batch)) != nil { throw FlowFailure("link", "Lane \(lane) has stopped.") }
    }

    mutating func flush() throws(FlowFailure) {
        for lane in 0..<lanes.count { try flush(lane) }
    }

    // MARK: Scans

    @discardableResult
    mutating func scan(holdLimit: Int) throws(FlowFailure) -> Int {
        let blocks = layout.blocks
        do throws(SystemError) {
            try Self.collect(memory.tracker, blocks, into: &rounds)
        } catch { throw Self.untold(error) }
        let heldBefore = rounds.heldCount
        let written = rounds.close(holdLimit: holdLimit)
        room?.measured(again: rounds.againCount, of: heldBefore)
        return written
    }

    /// All pages are about to travel, so what was written since the tracker was attached is no news, and belongs to no look.
    private func forgetWritten() throws(FlowFailure) {
        do throws(SystemError) { try memory.tracker.takeWritten { _, _, _ in } } catch { throw Self.untold(error) }
    }

    static func untold(_ error: SystemError) -> FlowFailure {
        FlowFailure("direct", "The pages that the guest has written cannot be told any more: \(error).")
    }

    /// True: the guest was stopped and must go on as soon as the scan is done, whatever became of the scan.
    func stopRequests() throws(FlowFailure) -> Bool {
        guard let drain = memory.drain else { return false }
        do { return try drain.stop() } catch {
            throw FlowFailure("direct", "The guest's disk requests could not be brought to an end: \(error).")
        }
    }

    func resumeGuest() throws(FlowFailure) {
        do { try memory.drain?.resume() } catch {
            throw FlowFailure("direct", "The guest did not go on after its disk requests were finished: \(error).")
        }
    }

    private static func collect(
        _ tracker: WriteTracker, _ blocks: [RAMBlock], into rounds: inout DirtyRounds
    ) throws(SystemError) {
        try tracker.takeWritten { area, offset, byteCount in
            rounds.insert(
                first: blocks[area].firstPage + PageNumber(offset / UInt64(Limits.pageBytes)),
                count: Int(byteCount / UInt64(Limits.pageBytes)))
        }
    }

    /// Nothing is held once the gate is open: rounds are short then, and whatever is held would wait for the stop.
    private func holdLimit() -> Int {
        guard let room, !gate.isOpen else { return 0 }
        let link = Double(flowSample().linkBytesPerS)
        return room.pages(pausePages: link * maxDowntimeMs / 1000 / Double(Limits.pageBytes))
    }

    func flowSample() -> FlowSample {
        var sample = FlowSample()
        for counter in counters { sample.add(counter) }
        return sample
    }

    /// What would be left if the guest were stopped when this round's pages are out.
    private mutating func sample(pagesPerS: Double) -> GateSample {
        let flow = flowSample()
        let link = max(Double(flow.linkBytesPerS), 1)
        var sample = GateSample()
        sample.elapsedMs = looks.elapsedMs
        sample.round = Int(progress.round.now)
        sample.linkBytesPerS = link
        ratio.take(flow, isFirstPass: sample.round <= 2)
        (sample.ratio, sample.changedRatio) = (ratio.all, ratio.changed)
        sample.canSlowDown = brake.map { $0.failure == nil } ?? false
        if !sample.canSlowDown { gate.cannotSlowDown() }
        sample.expectStop(
            gate, closing, readyPages: Double(rounds.readyCount), heldPages: Double(rounds.heldCount),
            pagesMax: Double(layout.pageCount), pagesPerS: pagesPerS)
        sample.dirtyBytesPerS = pagesPerS * Double(Limits.pageBytes)
        sample.unconfirmedBytes = 0
        sample.savedBytes = .infinity
        return sample
    }
}

extension Closing {
    fileprivate static func of(_ memory: DirectMemory) -> Closing {
        switch (memory.qemuSendsPagesToo, memory.drain == nil) {
        case (false, let isFree): Closing(roundMs: isFree ? Self.direct.roundMs : nil, noticeMs: Self.direct.noticeMs)
        // It takes QEMU some 200 ms: every round makes the guest fault again, so there are fewer.
        case (true, true): Closing(roundMs: 10, noticeMs: 25)
        case (true, false): Closing(roundMs: nil, noticeMs: 250)
        }
    }
}
