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
        report(.converged(predictedDowntimeMs: SwitchGate.fixedMs))
        guard orders.waitForStop() else { return }
        brake?.release()
        var rest = PageSet(pageCount: layout.pageCount)
        for run in try dataRuns() { rest.insert(first: run.first, count: run.count) }
        rest.subtract(sent)
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

    /// Nobody waits for what is recorded, and what is not used travels meanwhile.
    mutating func recordUse(_ options: RecordOptions) throws(FlowFailure) {
        let data = try dataRuns()
        let window = RecordWindow(msMax: options.msMax, pagesMax: data.reduce(0) { $0 + $1.count } / 2)
        let wasStopped = try stopRequests()
        var recorder = AccessRecorder(memory, window)
        if wasStopped { try resumeGuest() }
        // What a disk writes past the page tables is seen only when it is stopped.
        let sends = recorder.seesAll && memory.drain == nil && options.sendsMeanwhile
        var cold = ColdPages(sends ? data : [])
        progress.remainingPages.set(data.reduce(into: UInt64(0)) { $0 += UInt64($1.count) })
        while !recorder.isOver && !orders.isHurried && !(sends && cold.isEmpty) {
            let due = Instant.now().adding(ms: recorder.restMs)
            while Instant.now() < due, let run = cold.next(besides: recorder.used) {
                try send(run.first, run.count)
                progress.remainingPages.set(progress.remainingPages.now - UInt64(run.count))
            }
            if orders.next(afterMs: due.ms(since: Instant.now())) != .round { return }
            recorder.look()
        }
        let outcome = recorder.outcome
        memory.recorded.update { $0 = outcome }
    }
}
