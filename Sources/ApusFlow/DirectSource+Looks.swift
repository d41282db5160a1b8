internal import ApusMemory
internal import ApusSystem

// Looks at the guest's writing between two scans.

extension DirectSource {
    mutating func saw(_ look: TimedLook) {
        gate.saw(look)
        let (history, curve) = (gate.history, gate.curve)
        progress.writing.update { ($0.history, $0.curve) = (history, curve) }
    }

    mutating func lookIfDue() throws(FlowFailure) {
        let look: (seen: TimedLook, isNews: Bool)?
        let tracker = memory.tracker
        do throws(SystemError) {
            look = try looks.look { () throws(SystemError) in
                Double(try tracker.writtenBytes() / UInt64(Limits.pageBytes))
            }
        } catch { throw Self.untold(error) }
        guard let look else { return }
        progress.dirtyPagesPerS.set(UInt64(look.seen.pages / max(looks.sinceScanMs, 0.1) * 1000))
        guard look.isNews else { return }
        if gate.slowed == 0 { gate.saw(busyShare: brake?.busyShare) }
        saw(look.seen)
    }

    /// Waits for the next round, with a look at the guest now and then.
    mutating func nextOrder(afterMs waitMs: Double) throws(FlowFailure) -> DirectOrders.Next {
        let due = Instant.now().adding(ms: waitMs.isFinite ? waitMs : 0)
        while waitMs.isFinite {
            let leftMs = due.ms(since: Instant.now())
            let next = orders.next(afterMs: min(leftMs, RoundLooks.longestMs))
            if next != .round || leftMs <= RoundLooks.longestMs || orders.isHurried { return next }
            try lookIfDue()
        }
        return orders.next(afterMs: waitMs)
    }
}
