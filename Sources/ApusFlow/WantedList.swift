internal import ApusCodec
internal import ApusFabric
internal import ApusMemory
internal import ApusSystem
internal import ApusWire

/// What the fault thread has still to ask for, and where it asks.
struct WantedList: ~Copyable {
    private let layout: Layout
    var sender: FrameSender?
    /// Pages that were touched, and not looked at yet.
    var touched: [PageNumber] = []
    /// Asked for on this connection.
    private var asked: PageSet
    private var runs: [(first: PageNumber, count: Int)] = []
    private var rest: [(first: PageNumber, count: Int)] = []
    private var payload = PageBuffer(byteCount: WantedPayload.bytesMax)

    init(_ layout: Layout) {
        self.layout = layout
        asked = PageSet(pageCount: layout.pageCount)
    }

    mutating func forgetAsked() { asked = PageSet(pageCount: layout.pageCount) }

    /// False: it is on its way.
    mutating func note(_ first: PageNumber, _ count: Int) -> Bool {
        guard !asked.contains(first) else { return false }
        asked.insert(first: first, count: count)
        runs.append((first, count))
        return true
    }

    /// Pages of a run that nobody has asked for yet, within one block.
    mutating func noteRest(_ first: PageNumber, _ count: Int) {
        var page = first
        while page < first + PageNumber(count) {
            let left = Int(first + PageNumber(count) - page)
            let run = asked.uniformRun(from: page, count: left)
            defer { page += PageNumber(run.count) }
            guard !run.inSet, let index = layout.block(of: page) else { continue }
            let block = layout.blocks[index]
            guard page + PageNumber(run.count) <= block.firstPage + block.pageCount else { continue }
            asked.insert(first: page, count: run.count)
            rest.append((page, run.count))
        }
    }

    /// Touched pages first. When the connection is broken, they are asked for again on the next.
    mutating func send() {
        runs += rest
        rest.removeAll(keepingCapacity: true)
        for from in stride(from: 0, to: runs.count, by: WantedPayload.runsMax) {
            let part = runs[from..<min(from + WantedPayload.runsMax, runs.count)]
            for (index, run) in part.enumerated() { WantedPayload.store(run, at: index, in: &payload) }
            if !Self.transmit(&sender, payload, part.count * 8) { sender = nil }
        }
        runs.removeAll(keepingCapacity: true)
    }

    private static func transmit(
        _ sender: inout FrameSender?, _ payload: borrowing PageBuffer, _ byteCount: Int
    ) -> Bool {
        do throws(FabricError) {
            _ = try sender?.send(.wanted, lane: PullServer.urgentLane, payload.bytes.extracting(0..<byteCount))
            return true
        } catch { return false }
    }
}

/// Puts what comes on one of the two connections where it belongs.
struct PullInstaller: ~Copyable, PageInstaller {
    private let destination: PullDestination
    private let isUrgent: Bool
    let patchable = PageRanges()

    init(_ destination: PullDestination, isUrgent: Bool) {
        self.destination = destination
        self.isUrgent = isUrgent
    }

    mutating func install(first: PageNumber, _ bytes: RawSpan) throws(PayloadError) {
        do throws(SystemError) {
            try destination.install(first, bytes.byteCount / Limits.pageBytes, bytes, isUrgent: isUrgent)
        } catch { throw .install("\(error)") }
    }

    mutating func installZero(first: PageNumber, count: Int) throws(PayloadError) {
        do throws(SystemError) { try destination.install(first, count, nil, isUrgent: isUrgent) } catch {
            throw .install("\(error)")
        }
    }

    mutating func patch(_ page: PageNumber, mask: UInt32, lineBytes: Int, _ bytes: RawSpan) throws(PayloadError) {
        throw .notPatchable(page: page)
    }
}
