internal import ApusMemory
internal import ApusSystem

/// The batches that a port is filling, one per lane.
struct BatchSlots: ~Copyable, Sendable {
    private var slots = InlineArray<16, Batch?> { _ in nil }

    init(count: Int) { precondition(count <= Limits.lanes && Limits.lanes == 16) }

    /// False when the lane's batch has to be sent before this page can be added.
    @inline(__always)
    func accepts(_ page: PageNumber, _ form: Form, startsBlock: Bool, _ lane: Int) -> Bool {
        slots[lane]?.accepts(page, form: form, startsBlock: startsBlock) ?? true
    }

    /// Takes an empty batch from the pool when the lane has none; waits for one.
    @inline(__always)
    mutating func fill(_ lane: Int, from queue: LaneQueue) throws(FlowFailure) {
        if slots[lane] != nil { return }
        guard let batch = queue.pool.receive() else { throw FlowFailure("link", "Lane \(lane) has stopped.") }
        slots[lane] = consume batch
    }

    @inline(__always)
    mutating func add(_ page: PageNumber, _ bytes: RawSpan, startsBlock: Bool, _ lane: Int) {
        slots[lane]?.add(page, bytes, startsBlock: startsBlock)
    }

    @inline(__always)
    mutating func addZero(_ page: PageNumber, startsBlock: Bool, _ lane: Int) {
        slots[lane]?.addZero(page, startsBlock: startsBlock)
    }

    /// See ``Batch/addRun(_:count:startsBlock:_:)``.
    @inline(__always)
    mutating func addRun(
        _ first: PageNumber, count: Int, startsBlock: Bool, _ lane: Int,
        _ fill: (inout PageBuffer, _ at: Int, _ pages: Int) -> Void
    ) -> Int {
        slots[lane]?.addRun(first, count: count, startsBlock: startsBlock, fill) ?? 0
    }

    @inline(__always)
    func isFull(_ lane: Int) -> Bool { slots[lane]?.hasNoRoomForData() ?? false }

    /// The lane's batch, which it then has no more; nil when it has none or it is empty.
    mutating func take(_ lane: Int) -> Batch? {
        guard slots[lane]?.hasRecords() ?? false else { return nil }
        return slots[lane].take()
    }
}
