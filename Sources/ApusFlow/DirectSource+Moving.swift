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
        // What the last round found did not travel; what it held back, the scan finds again.
        let unsent = rounds.ready
        try scan(holdLimit: 0)
        for index in 0..<rest.wordCount {
            rest[word: index] &= ~sent[word: index] | unsent[word: index] | rounds.ready[word: index]
        }
        orders.finished(rest: rest)
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
