public import ApusMemory
internal import ApusSystem

/// Everything that the sending half of a lane decides about a batch, without a link: what is left out, what travels as
/// lines, which codec, in which order, and what is in flight.
///
/// ```
///   batch --> [ LineFilter ] -- whole pages ----------------------> [ BatchEncoder ] --> frame
///                  `-------- changed lines --> [ UpdateEncoder ] -- full, old, fence --> frame
///                                                    `-- before a batch that may hold a page of its own
/// ```
/// Every frame goes into ``flight`` before it is handed out, so a connection that is lost while it is sent loses nothing.
public struct LaneEncoder: ~Copyable, Sendable {
    /// A frame that is ready in ``pages`` or ``updates``.
    public enum Frame: Sendable {
        case pages(BatchEncoder.Result)
        case updates(UpdateEncoder.Result)
    }

    /// What both ends can do.
    public struct Options: Sendable {
        public var squeezes: Bool
        /// Bytes of a line; nil: pages always travel whole.
        public var lineBytes: Int?
        /// Cap of this lane's line hashes.
        public var tableBytesMax: Int
        public init(squeezes: Bool, lineBytes: Int?, tableBytesMax: Int) {
            self.squeezes = squeezes
            self.lineBytes = lineBytes
            self.tableBytesMax = tableBytesMax
        }
    }

    private enum Stage { case before, filter, after, done }

    public private(set) var pages = BatchEncoder()
    public private(set) var updates: UpdateEncoder
    public private(set) var flight = FlightLedger()
    /// What filtering the batches has done so far.
    public private(set) var filtered = LineFilter.Counts()
    private var filter: LineFilter?
    private let squeezes: Bool
    private let cpuNs: @Sendable () -> UInt64
    private var pagePilot = SqueezePilot()
    private var linePilot = SqueezePilot()
    private var stage = Stage.before
    /// When the oldest lines in ``updates`` came.
    private var gatheringSinceNs: UInt64 = 0

    /// - Parameter cpuNs: CPU time of the thread that runs this.
    public init(_ share: LaneShare, _ options: Options, cpuNs: @escaping @Sendable () -> UInt64) {
        squeezes = options.squeezes
        self.cpuNs = cpuNs
        updates = UpdateEncoder(lineBytes: options.lineBytes ?? Limits.lineBytesMin)
        if let lineBytes = options.lineBytes {
            filter = LineFilter(share, lineBytes: lineBytes, tableBytesMax: options.tableBytesMax)
        }
    }

    /// The receiver can change parts of these pages; of none before it has said so.
    public mutating func mayPatch(_ ranges: PageRanges) { filter?.patchable = ranges }

    /// These pages travel whole next time, whatever the receiver is thought to hold.
    public mutating func forget(first: PageNumber, count: Int) { filter?.forget(first: first, count: count) }

    /// A frame that is not made here, with these pages; what the receiver will hold of them is not known. ``FlightLedger``
    /// must have room.
    public mutating func beginElsewhere() { flight.begin() }
    public mutating func addElsewhere(_ page: PageNumber) {
        flight.add(first: page, count: 1)
        filter?.forget(first: page, count: 1)
    }

    /// Bytes of line hashes.
    public var tableBytes: Int { filter?.tableBytes() ?? 0 }

    /// When gathered lines should go, however few; nil when there are none.
    public var dueNs: UInt64? {
        updates.isEmpty ? nil : gatheringSinceNs + UInt64(Limits.updateAgeMs * 1e6)
    }

    /// The next frame that a batch makes; nil when it makes no more. The frame must be sent before the next call.
    /// ``FlightLedger/hasRoom`` must be true.
    public mutating func next(_ batch: inout Batch, linkBytesPerNs: Double, nowNs: UInt64) -> Frame? {
        while true {
            switch stage {
            case .before:
                stage = .filter
                if batch.hasRecords(), updates.reaches(batch.records[0].first) {
                    return flush(linkBytesPerNs: linkBytesPerNs).map { .updates($0) }
                }
            case .filter:
                stage = .after
                filterLines(&batch, linkBytesPerNs, nowNs)
                if batch.hasRecords() { return .pages(encode(&batch, linkBytesPerNs)) }
            case .after:
                stage = .done
                if updates.isFull || nowNs >= dueNs ?? .max {
                    return flush(linkBytesPerNs: linkBytesPerNs).map { .updates($0) }
                }
            case .done:
                stage = .before
                return nil
            }
        }
    }

    /// The gathered lines as a frame; nil when there are none. ``FlightLedger/hasRoom`` must be true.
    public mutating func flush(linkBytesPerNs: Double) -> UpdateEncoder.Result? {
        guard !updates.isEmpty else { return nil }
        flight.begin()
        for index in 0..<updates.pageCount { flight.add(first: updates.page(at: index), count: 1) }
        let choice = squeezes ? Self.choose(&linePilot, updates, linkBytesPerNs) : .raw
        let (bytes, startNs) = (updates.lineByteCount, cpuNs())
        let result = updates.finish(choice)
        linePilot.learn(choice, ns: cpuNs() - startNs, bytes: bytes, left: min(bytes, result.byteCount))
        updates.reset()
        return result
    }

    /// The receiver has applied all frames up to this one; false when it cannot have.
    public mutating func confirm(upTo frame: UInt64) -> Bool { flight.confirm(upTo: frame) }

    /// After a lost connection: the receiver has applied `frames`, and whatever was on its way is gone. Calls `lost` for
    /// every run of pages that must be sent again; they travel whole. False when the receiver cannot have applied so many.
    public mutating func resume(applied frames: UInt64, lost: (_ first: PageNumber, _ count: Int) -> Void) -> Bool {
        guard flight.confirm(upTo: frames) else { return false }
        for index in 0..<updates.pageCount { lose(updates.page(at: index), 1, lost) }
        updates.reset()
        while let run = flight.takeUnconfirmed() { lose(run.first, run.count, lost) }
        pages.restart()
        updates.restart()
        stage = .before
        return true
    }

    private mutating func lose(_ first: PageNumber, _ count: Int, _ lost: (PageNumber, Int) -> Void) {
        filter?.forget(first: first, count: count)
        lost(first, count)
    }

    private mutating func filterLines(_ batch: inout Batch, _ linkBytesPerNs: Double, _ nowNs: UInt64) {
        if updates.isEmpty { gatheringSinceNs = nowNs }
        guard
            let counts = filter?.filter(&batch, into: &updates, linkBytesPerNs: linkBytesPerNs, cpuNs: cpuNs)
        else { return }
        filtered.samePages += counts.samePages
        filtered.linePages += counts.linePages
        filtered.lines += counts.lines
    }

    private mutating func encode(_ batch: inout Batch, _ linkBytesPerNs: Double) -> BatchEncoder.Result {
        flight.begin()
        for index in 0..<batch.recordCount {
            let record = batch.records[index]
            flight.add(first: record.first, count: Int(record.count))
        }
        guard squeezes, batch.dataPages > 0 else { return pages.encode(&batch, .raw) }
        let bytes = batch.dataPages * Limits.pageBytes
        let choice = pagePilot.choose(batch.data.bytes.extracting(0..<bytes), linkBytesPerNs: linkBytesPerNs)
        let startNs = cpuNs()
        let result = pages.encode(&batch, choice)
        pagePilot.learn(
            choice, ns: cpuNs() - startNs, bytes: bytes, left: result.codec == .none ? bytes : result.squeezedBytes)
        return result
    }

    private static func choose(
        _ pilot: inout SqueezePilot, _ updates: borrowing UpdateEncoder, _ linkBytesPerNs: Double
    ) -> CodecChoice {
        pilot.choose(updates.lines.bytes.extracting(0..<updates.lineByteCount), linkBytesPerNs: linkBytesPerNs)
    }
}
