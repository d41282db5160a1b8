internal import ApusCodec
internal import ApusFabric
internal import ApusMemory
internal import ApusSystem
internal import ApusWire

// What a lane sends a second time: pages that were on their way when a connection was lost, and pages that the audit found
// to differ.
extension SendLane {
    // MARK: After a lost connection

    /// Goes on with a new connection. Of the frames sent, the receiver has applied so many; the others' pages are sent
    /// again, as they are now: what the guest writes meanwhile comes later, by its port.
    mutating func adopt(_ connection: consuming Connection, applied: UInt64) throws(FabricError) {
        features = connection.features
        linesMayCome = features.contains(.lines)
        sender = connection.sender
        receiver = connection.receiver
        bytesBefore = counters.wireBytes.now
        counters.confirmedBytes.set(bytesBefore)
        sentBytes = 0
        creditedBytes = 0
        let guest = self.guest
        var pages = lost
        passage.lose(applied: applied)
        let knows = encoder.resume(applied: applied) { Self.lose(&pages, guest, $0, $1) }
        references.lose { Self.lose(&pages, guest, $0, 1) }
        counters.waitingPages.set(0)
        refused.take()?.forEachStripeRun { Self.lose(&pages, guest, $0, $1) }
        guard knows else { throw .frame(.badPayload(.credit, "\(applied) frames applied, which is not what was sent")) }
        lost = pages
    }

    static func lose(
        _ lost: inout PageSet?, _ guest: Monitor<GuestReader?>, _ first: PageNumber, _ count: Int
    ) {
        // Pages come only after the layout.
        guard let pageCount = guest.read({ $0?.layout.pageCount }) else { preconditionFailure("no layout, and pages") }
        var pages = lost.take() ?? PageSet(pageCount: pageCount)
        pages.insert(first: first, count: count)
        lost = pages
    }

    mutating func sendLost() throws(FabricError) {
        guard let pages = lost, let layout = guest.read({ $0?.layout }) else { return }
        try pages.forEachStripeRun { (first, count) throws(FabricError) in
            // A stripe may hold the end of one block and the beginning of the next.
            var page = first
            while page < first + PageNumber(count), let index = layout.block(of: page) {
                let block = layout.blocks[index]
                let part = Int(min(first + PageNumber(count), block.firstPage + block.pageCount) - page)
                try sendAgain(page, part)
                lost?.remove(first: page, count: part)
                page += PageNumber(part)
            }
        }
        lost = nil
    }

    /// The batches of the pool may all be on their way to this lane.
    private mutating func sendAgain(_ first: PageNumber, _ count: Int) throws(FabricError) {
        var batch = lostBatch.take() ?? Batch()
        encoder.forget(first: first, count: count)
        do throws(FabricError) {
            try audit.fill(&batch, first, count)
            try send(&batch, literally: true)
        } catch {
            batch.reset()
            lostBatch = consume batch
            throw error
        }
        batch.reset()
        lostBatch = consume batch
    }

    // MARK: The audit

    /// Compares all pages that both sides can read, and sends again what differs, until nothing does. The guest is
    /// stopped, and everything that was sent is installed before the first digest is compared.
    mutating func verify() throws(FabricError) {
        guard verifies else { return }
        // Which pages the receiver can read is the first thing it says, and may be on its way.
        while linesMayCome { try waitForCredit() }
        var due = audit.runs(in: patchable)
        for _ in 0..<SourceAudit.passes {
            for from in stride(from: 0, to: due.count, by: AuditPayload.entriesMax) {
                let length = try audit.ask(Array(due[from..<min(from + AuditPayload.entriesMax, due.count)]))
                account(bytes: try Self.transmit(&sender, index, audit, length))
                // One question is on its way while the next is made.
                while audit.isFull() { try waitForCredit() }
            }
            while audit.isWaiting() { try waitForCredit() }
            counters.auditedPages.add(due.reduce(0) { $0 + $1.count })
            due = audit.takeDiffering()
            for run in due { try sendWhole(run.first, run.count) }
            if due.isEmpty { return }
        }
        throw .auditFailed(pages: due.reduce(0) { $0 + $1.count })
    }

    private static func transmit(
        _ sender: inout FrameSender, _ lane: UInt16, _ audit: borrowing SourceAudit, _ length: Int
    ) throws(FabricError) -> Int {
        try sender.send(.audit, lane: lane, audit.question.bytes.extracting(0..<length))
    }

    private mutating func sendWhole(_ first: PageNumber, _ count: Int) throws(FabricError) {
        guard var batch = lanes.pool.receive() else { throw .closed }
        encoder.forget(first: first, count: count)
        try audit.fill(&batch, first, count)
        try send(&batch, literally: true)
        batch.reset()
        _ = lanes.pool.send(batch)
        counters.repairedPages.add(count)
    }
}
