internal import ApusCodec
internal import ApusContent
internal import ApusFabric
internal import ApusMemory
internal import ApusSystem
internal import ApusWire

// Pages that a lane refers to instead of sending them.
extension SendLane {
    /// Sends what of a batch can be had elsewhere as references, and takes it out of the batch.
    mutating func sendReferences(_ batch: inout Batch) throws(FabricError) {
        guard references.isOn(), let readable = guest.read({ $0?.readable }) else { return }
        let slots = references.search(batch, readable: readable)
        guard slots != 0 else { return }
        // Lines that were gathered earlier are older.
        if encoder.updates.reaches(batch.records[0].first) { try flush() }
        while true {
            try waitForRoom()
            try waitForAnswers()
            guard let length = references.nextFrame(batch) else { break }
            encoder.beginElsewhere()
            addPagesElsewhere()
            _ = try waitForLink(length)
            let bytes = try Self.transmit(&sender, lane: index, references, length)
            account(bytes: bytes)
            counters.referenceBytes.add(bytes)
            counters.waitingPages.set(UInt64(references.waitingPages()))
        }
        meter.wasBusyElsewhere()
        // Only now: what breaks off before leaves the whole batch to be sent again.
        batch.remove(slots: slots)
    }

    private mutating func addPagesElsewhere() {
        var pages = InlineArray<64, PageNumber>(repeating: 0)
        var count = 0
        references.eachPageOfFrame { page in
            pages[count] = page
            count += 1
        }
        for index in 0..<count { encoder.addElsewhere(pages[index]) }
    }

    private static func transmit(
        _ sender: inout FrameSender, lane: UInt16, _ references: borrowing OutgoingReferences, _ length: Int
    ) throws(FabricError) -> Int {
        try sender.send(.reference, lane: lane, references.frame.bytes.extracting(0..<length))
    }

    /// Waits until one more frame of references may be unanswered.
    private mutating func waitForAnswers() throws(FabricError) {
        try collectCredits()
        while !references.hasRoom() {
            try takeWithin(ms: 100)
            try giveUpIfSilent()
        }
    }

    /// Takes a frame when one comes in time.
    private mutating func takeWithin(ms: Int32) throws(FabricError) {
        do throws(SystemError) {
            guard try receiver.socket.isReadable(withinMs: ms) else { return }
        } catch { throw .system(error) }
        guard let frame = try receiver.receive() else { throw .closed }
        try take(frame)
    }

    mutating func takeAnswer() throws(FabricError) {
        var pages = refused
        // A lane that has never waited for its link has only guessed at it, upwards.
        let bytesPerNs = meter.shownBytesPerNs ?? assumedBytesPerNs
        let (guest, literalMs) = (guest, Double(Limits.pageBytes) / bytesPerNs / 1e6)
        do throws(FrameError) {
            let answer = try ReferenceAnswer(receiver.payload)
            try references.answered(answer, literalMs: literalMs) { Self.lose(&pages, guest, $0, 1) }
        } catch { throw .frame(error) }
        refused = pages
        countReferences()
    }

    /// A receiver whose storage hangs is not waited for.
    mutating func giveUpIfSilent() throws(FabricError) {
        guard references.isSilent() else { return }
        references.shut()
        giveUpReferences()
        try sendRefused()
    }

    private mutating func giveUpReferences() {
        var pages = refused
        let guest = guest
        references.giveUp { Self.lose(&pages, guest, $0, 1) }
        refused = pages
        countReferences()
    }

    /// Sends what the receiver could not get elsewhere, as it is now.
    mutating func sendRefused() throws(FabricError) {
        while let pages = refused.take() {
            // Until they are out, the loss of the connection is the loss of all of them.
            var all = lost
            let guest = guest
            pages.forEachStripeRun { Self.lose(&all, guest, $0, $1) }
            lost = all
            try sendLost()
        }
    }

    /// Before a fence: every page that was referred to is there, or has travelled. The guest stands still, so this does not
    /// wait long for a disk.
    mutating func settleReferences() throws(FabricError) {
        guard references.isOn() else { return }
        let deadline = Instant.now().adding(ms: OutgoingReferences.fencePatienceMs)
        while references.isWaiting(), Instant.now() < deadline { try takeWithin(ms: 2) }
        if references.isWaiting() { giveUpReferences() }
        try sendRefused()
        try flush()
    }

    private func countReferences() {
        let counts = references.counts
        counters.diskPages.set(UInt64(counts.diskPages))
        counters.snapshotPages.set(UInt64(counts.snapshotPages))
        counters.refusedPages.set(UInt64(counts.refusedPages))
        counters.unansweredPages.set(UInt64(counts.unansweredPages))
        counters.referenceClosures.set(UInt64(counts.closures))
        counters.waitingPages.set(UInt64(references.waitingPages()))
    }
}
