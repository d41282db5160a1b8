internal import ApusMemory
internal import ApusSystem

// The guest moves before all of its memory has travelled.

extension DirectSource {
    /// At once, but for the time in which it is recorded what the guest uses.
    mutating func handOver() throws(FlowFailure) {
        if let record { try recordUse(record) }
        try moveNow()
    }

    /// The guest moves, and what it has that did not travel, or was written since, is the rest.
    mutating func moveNow() throws(FlowFailure) {
        if orders.isOver { return }
        try flush()
        waitForLanes()
        var rest = PageSet(pageCount: layout.pageCount)
        // Pages that come into being from here on are written, so the scan finds them.
        for run in try dataRuns() { rest.insert(first: run.first, count: run.count) }
        rest.subtract(sent)
        report(.converged(predictedDowntimeMs: SwitchGate.fixedMs))
        guard orders.waitForStop() else { return }
        brake?.release()
        // What the last round found did not travel; what it held back, the scan finds again. A page that was written and is
        // a hole by now counts too: the destination may have something else in it.
        rest.formUnion(rounds.ready)
        let former = (hot: rounds.held, ready: rounds.ready)
        try scan(holdLimit: 0)
        rest.formUnion(rounds.ready)
        noteWritten([former.hot, rounds.ready, former.ready])
        orders.finished(rest: rest)
    }

    /// Where no use was recorded, what was written in the last rounds stands for it: hot pages, which were written in every
    /// round, then what the last looks found.
    func noteWritten(_ sets: [PageSet]) {
        memory.recorded.update { if $0.record.pageCount == 0 { $0.record = AccessRecord(written: sets) } }
    }

    /// Nobody waits for what is recorded, and pages travel meanwhile.
    mutating func recordUse(_ options: RecordOptions) throws(FlowFailure) {
        let data = try dataRuns()
        let dataPages = data.reduce(0) { $0 + $1.count }
        let wasStopped = try stopRequests()
        // What a disk writes past the page tables is seen only when it is stopped.
        let maySend = memory.drain == nil && options.sendsMeanwhile
        let msMax = maySend ? options.msMax : options.msMax * RecordWindow.idleShare
        var recorder = AccessRecorder(memory, RecordWindow(msMax: msMax, dataPages: dataPages))
        if wasStopped { try resumeGuest() }
        let sends = recorder.seesAll && maySend
        var early = EarlyPages(sends ? data : [])
        var left = dataPages
        progress.remainingPages.set(UInt64(left))
        var isOver = false
        while !isOver && !recorder.isOver && !orders.isHurried {
            let due = Instant.now().adding(ms: recorder.restMs)
            while sends && !isOver && Instant.now() < due {
                guard let run = nextEarly(&early, recorder) else {
                    isOver = true
                    continue
                }
                try send(run.first, run.count)
                left = max(0, left - run.count)
                progress.remainingPages.set(UInt64(left))
            }
            if orders.next(afterMs: due.ms(since: Instant.now())) != .round { return }
            recorder.look(leftMs: sends ? linkMs(pages: left) : nil)
        }
        let outcome = recorder.outcome
        memory.recorded.update { $0 = outcome }
    }

    private func nextEarly(
        _ early: inout EarlyPages, _ recorder: borrowing AccessRecorder
    ) -> (first: PageNumber, count: Int)? {
        let (record, comesBack) = (recorder.outcome.record, recorder.window.comesBack)
        return early.next(record, used: recorder.used, usedFirst: comesBack) { page in
            sent.contains(page) || recorder.written.contains(page)
        }
    }

    private func linkMs(pages: Int) -> Double {
        Double(pages * Limits.pageBytes) / max(Double(flowSample().linkBytesPerS), 1) * 1000
    }
}
