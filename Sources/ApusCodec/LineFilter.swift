public import ApusMemory
internal import ApusSystem

/// Takes out of a lane's batches what the receiver already has: pages that are the same go away, pages of which little has
/// changed go into the next update frame. What is left in the batch travels whole.
public struct LineFilter: ~Copyable, Sendable {
    public struct Counts: Sendable, Equatable {
        public var samePages = 0
        public var linePages = 0
        public var lines = 0
    }

    public var patchable = PageRanges()
    public private(set) var gauge = LineGauge()
    private var table: LineTable
    private let share: LaneShare

    public init(_ share: LaneShare, lineBytes: Int, tableBytesMax: Int) {
        self.share = share
        table = LineTable(share, lineBytes: lineBytes, bytesMax: tableBytesMax)
    }

    /// Bytes of line hashes.
    public func tableBytes() -> Int { table.byteCount }

    /// The receiver may not have what was sent of these pages.
    public mutating func forget(first: PageNumber, count: Int) { table.forget(first: first, count: count) }

    /// - Parameters:
    ///   - batch: must not hold a page that is in `updates`.
    ///   - cpuNs: the thread's CPU time.
    public mutating func filter(
        _ batch: inout Batch, into updates: inout UpdateEncoder, linkBytesPerNs: Double, cpuNs: () -> UInt64
    ) -> Counts {
        gauge.decide(linkBytesPerNs: linkBytesPerNs)
        var counts = Counts()
        var looked = 0
        var again = 0
        var drop: UInt64 = 0
        let startNs = cpuNs()
        // A page that goes out of a run's middle makes one run more.
        var room = Limits.batchRecords - batch.recordCount
        var slot = 0
        for index in 0..<batch.recordCount {
            let record = batch.records[index]
            if record.form == .zero {
                table.setZero(first: record.first, count: Int(record.count))
                continue
            }
            let mayPatch = patchable.contains(record.first)
            for page in record.first..<record.first + PageNumber(record.count) {
                defer { slot += 1 }
                guard gauge.tracks(page, share) else {
                    table.forget(first: page, count: 1)
                    continue
                }
                let bytes = batch.data.bytes.extracting(slot * Limits.pageBytes..<(slot + 1) * Limits.pageBytes)
                let isKnown = table.knows(page)
                looked += 1
                if isKnown { again += 1 }
                switch table.take(page, bytes, mayDrop: room > 0, mayPatch: mayPatch) {
                case .whole:
                    continue
                case .same:
                    counts.samePages += 1
                case .lines(let mask, let base):
                    updates.add(page, mask: mask, base: base, bytes)
                    counts.linePages += 1
                    counts.lines += mask.nonzeroBitCount
                }
                drop |= 1 << UInt64(slot)
                room -= 1
            }
        }
        let sent = counts.linePages * UpdatePayload.entryBytes + counts.lines * table.lineBytes
        let saved = (counts.samePages + counts.linePages) * Limits.pageBytes - sent
        gauge.learn(pages: looked, ns: cpuNs() - startNs, again: again, savedBytes: saved)
        batch.remove(slots: drop)
        return counts
    }
}
