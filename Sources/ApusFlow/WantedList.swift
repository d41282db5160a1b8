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
    private var pages: [PageNumber] = []
    private var payload = PageBuffer(byteCount: WantedPayload.bytesMax)

    init(_ layout: Layout) {
        self.layout = layout
        asked = PageSet(pageCount: layout.pageCount)
    }

    mutating func forgetAsked() { asked = PageSet(pageCount: layout.pageCount) }

    /// To be asked for, unless it was already.
    mutating func note(_ page: PageNumber) {
        guard !asked.contains(page) else { return }
        asked.insert(first: page, count: 1)
        pages.append(page)
    }

    /// When the connection is broken, they are asked for again on the next.
    mutating func send() {
        for from in stride(from: 0, to: pages.count, by: WantedPayload.runsMax) {
            let part = pages[from..<min(from + WantedPayload.runsMax, pages.count)]
            for (index, page) in part.enumerated() { WantedPayload.store((page, 1), at: index, in: &payload) }
            if !Self.transmit(&sender, payload, part.count * 8) { sender = nil }
        }
        pages.removeAll(keepingCapacity: true)
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
    /// Of the frame that is being taken apart.
    var way = PullWay.asked
    let patchable = PageRanges()

    init(_ destination: PullDestination) { self.destination = destination }

    mutating func install(first: PageNumber, _ bytes: RawSpan) throws(PayloadError) {
        do throws(SystemError) {
            try destination.install(first, bytes.byteCount / Limits.pageBytes, bytes, way)
        } catch { throw .install("\(error)") }
    }

    mutating func installZero(first: PageNumber, count: Int) throws(PayloadError) {
        do throws(SystemError) { try destination.install(first, count, nil, way) } catch {
            throw .install("\(error)")
        }
    }

    mutating func patch(_ page: PageNumber, mask: UInt32, lineBytes: Int, _ bytes: RawSpan) throws(PayloadError) {
        throw .notPatchable(page: page)
    }
}
