internal import ApusMemory
internal import ApusWire

// What QEMU sends while the agent reads most of the guest's RAM itself.
extension StreamSource {
    @inline(__always)
    mutating func besideDirect(_ block: Int, _ offset: UInt64, _ range: Range<Int>) throws(FlowFailure) {
        guard block < fates.count else {
            throw FlowFailure("qemu-stream", "The source QEMU sent a page before its list of RAM blocks.")
        }
        if let stop = qemuHold, block > stop.block || (block == stop.block && offset >= stop.offset) {
            try flushPending()
            guard direct?.orders.waitUntilQemuMayFinish() == true else {
                throw FlowFailure("link", "The lanes have stopped.")
            }
            qemuHold = nil
        }
        switch fates[block] {
        case .dropped: break
        case .leftOut: throw Self.wrongSide(reader.blocks[block].name, "is sent by QEMU, which was to leave it out.")
        case .forwarded:
            fates[block] = .forwarded(isSent: true)
            if case .silent(let head) = part {
                pending.append(contentsOf: head)
                part = .forwarded
            }
            forward(range)
            if pending.count >= Self.streamFrameBytes { try flushPending() }
        }
    }

    mutating func decideFates(_ memory: DirectMemory, _ layout: Layout) throws(FlowFailure) {
        for (index, block) in layout.blocks.enumerated() {
            guard let owned = memory.layout.blocks.first(where: { $0.name == block.name }) else {
                fates.append(.forwarded(isSent: block.byteCount == 0))
                continue
            }
            guard owned.byteCount == block.byteCount else {
                throw Self.wrongSide(block.name, "has \(block.byteCount) bytes, the agent owns \(owned.byteCount).")
            }
            guard memory.sentByQemu.contains(block.name) else {
                fates.append(.leftOut)
                continue
            }
            fates.append(.dropped)
            qemuHold = (index, block.byteCount - min(Self.heldBytes, block.byteCount))
        }
    }

    /// The guest is stopped, and QEMU has sent all its pages. What the agent does not own must have come from QEMU, or a
    /// part of the guest's memory would be missing.
    mutating func finishDirect() throws(FlowFailure) {
        // Once: device state may look like another section.
        guard let direct, fenceSent < epoch else { return }
        for (block, fate) in zip(reader.blocks, fates) {
            if case .forwarded(isSent: false) = fate {
                throw Self.wrongSide(block.name, "is left out by QEMU, but the agent does not own it.")
            }
        }
        guard direct.orders.waitForLast() else { throw FlowFailure("link", "The lanes have stopped.") }
        if let rest = direct.orders.rest { try announce(rest: rest) }
    }

    private static func wrongSide(_ block: String, _ what: String) -> FlowFailure {
        FlowFailure("direct-layout", "RAM block \(block) \(what) Migrate with --port stream.")
    }
}
