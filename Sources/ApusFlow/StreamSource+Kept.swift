internal import ApusFabric
internal import ApusMemory
internal import ApusSystem
internal import ApusWire
internal import Synchronization

// Pages that stay when the guest moves, with RAM that only QEMU's stream tells of:
//
//   order          rounds -------- given: keep ------------------------------------------ END
//   a page comes   travels          is noted and dropped, at the speed of memory           then: fence, residence, devices
//   QEMU           slow link        very fast link: a pass or two, and it stops the guest
//
// QEMU sends as in any migration, and fails, resumes and hands over as in any. It only believes the link to be fast. So
// what is "the rest" needs no bitmap of QEMU's: a page that came since the order and was dropped is in it, and every page
// that the guest wrote since comes again before END.

/// Tells a stream source from when on pages stay.
final class KeepOrder: Sendable {
    /// The blocks whose pages may stay.
    let fetchable: Layout
    /// What the guest wrote last, once it is stopped.
    let recorded: Monitor<RecordOutcome>
    /// Pages stay in any case. Else only once it is given.
    private let isSure: Bool
    private let given: Atomic<Bool>

    init(_ fetchable: Layout, _ options: FlowOptions) {
        self.fetchable = fetchable
        recorded = options.recorded
        isSure = options.pull != .ifNeeded
        // From the first page.
        given = Atomic(options.keepsAtOnce)
    }

    var isGiven: Bool { given.load(ordering: .relaxed) }
    /// QEMU may stop the guest before it is given.
    var keepsAtEnd: Bool { isSure || isGiven }
    func give() { given.store(true, ordering: .relaxed) }
}

extension StreamSource {
    /// From here on pages stay. What is in batches goes, for its content may be the newest; held pages stay.
    mutating func beginKeeping() throws(FlowFailure) {
        guard kept == nil, let keepOrder, let layout else { return }
        kept = KeptPages(keepOrder.fetchable, of: layout, isFirstPass: round == 1)
        guard kept != nil else {
            throw FlowFailure(
                "fetch-layout",
                "The RAM blocks of the source QEMU are other ones than when the job began. Migrate again.")
        }
        try flushBatches()
        try stopHolding()
    }

    /// The guest is stopped, and what QEMU had to say of its RAM is said.
    mutating func finishKeeping() throws(FlowFailure) {
        // Once: device state may look like another section.
        guard let keepOrder, fenceSent < epoch else { return }
        if let written = kept?.written { keepOrder.recorded.update { $0.record = written } }
        // The destination waits for it, even where nothing stays.
        try announce(rest: kept?.pages ?? PageSet(pageCount: keepOrder.fetchable.pageCount))
    }

    /// Behind the fence: no lane writes into guest RAM any more when the destination empties these pages.
    mutating func announce(rest: PageSet) throws(FlowFailure) {
        try sendFence()
        for piece in ResidencePayload.pieces(rest) { try pass(.init(.residence, epoch: epoch, piece)) }
        guard let last = lanes.indices.last, last > 0 else { return }
        if lanes[last].queue.send(.handOver(rest)) != nil { throw FlowFailure("link", "Lane \(last) has stopped.") }
    }
}
