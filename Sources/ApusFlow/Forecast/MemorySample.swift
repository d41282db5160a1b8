internal import ApusCodec
public import ApusMemory
internal import ApusSystem

/// What a part of a guest's pages, chosen at random, is like to send.
public struct MemorySample: Sendable, Equatable {
    public var pages: Int
    public var zeroPages: Int
    /// Share of the memory that its file has not: zero, and not looked at.
    public var holeShare = 0.0
    /// Wire bytes of a page that is not zero, in the codec that a lane would choose for the link.
    public var bytesPerPage: Double
    public init(pages: Int, zeroPages: Int, bytesPerPage: Double) {
        self.pages = pages
        self.zeroPages = zeroPages
        self.bytesPerPage = bytesPerPage
    }
    public var zeroShare: Double { holeShare + (1 - holeShare) * seenZeroShare }
    private var seenZeroShare: Double { pages > 0 ? Double(zeroPages) / Double(pages) : 0 }
    /// Wire bytes of any of the pages that were looked at, zeros among them.
    public var bytesPerSeenPage: Double { bytesPerPage * (1 - seenZeroShare) }
}

extension MemorySample {
    /// Pages that are read: 8 MiB; some tens of milliseconds of CPU time.
    public static let pagesMax = 2048
    /// Neighbours resemble each other, and zstd profits from it as it will in the migration.
    private static let runPages = 16

    /// Blocks; the guest runs on.
    ///
    /// - Parameter ports: how each block of `layout` can be read; those that only QEMU reaches are left out.
    /// - Returns: nil when none can be read.
    public static func take(
        _ layout: Layout, _ ports: [BlockPort], linkBytesPerS: Double
    ) throws -> MemorySample? {
        let data = try dataRuns(layout, ports)
        let pages = data.reduce(0) { $0 + $1.count }
        guard var sample = try take(data, GuestReader(layout, ports), linkBytesPerS: linkBytesPerS) else { return nil }
        let readable = zip(layout.blocks, ports).reduce(0) { $0 + ($1.1.isReadable ? Int($1.0.pageCount) : 0) }
        sample.holeShare = 1 - Double(pages) / Double(max(readable, 1))
        return sample
    }

    /// - Parameter data: runs of readable pages, ascending.
    static func take(
        _ data: [(first: PageNumber, count: Int)], _ reader: GuestReader, linkBytesPerS: Double
    ) throws -> MemorySample? {
        let all = data.flatMap { run in
            stride(from: 0, to: run.count, by: runPages).map {
                (first: run.first + PageNumber($0), count: min(runPages, run.count - $0))
            }
        }
        guard !all.isEmpty else { return nil }
        var sampler = PageSampler(linkBytesPerS: linkBytesPerS)
        // The codecs are tried on pages from everywhere, as all that is counted then.
        for run in spread(all, PageSampler.trialPages / runPages) + spread(all, pagesMax / runPages) {
            try sampler.add(run.first, count: run.count, reader)
        }
        return sampler.finish()
    }

    /// So many of them at most, from the middle of as many equal parts.
    private static func spread<Run>(_ all: [Run], _ count: Int) -> [Run] {
        guard all.count > count else { return all }
        let step = Double(all.count) / Double(count)
        return (0..<count).map { all[min(Int((Double($0) + 0.5) * step), all.count - 1)] }
    }

    /// What the files have; of memory in no file, all.
    private static func dataRuns(
        _ layout: Layout, _ ports: [BlockPort]
    ) throws -> [(first: PageNumber, count: Int)] {
        var all = try layout.dataRuns(ports.map(\.window))
        for (block, port) in zip(layout.blocks, ports) where port.isReadable && port.window == nil {
            if block.pageCount > 0 { all.append((block.firstPage, Int(block.pageCount))) }
        }
        return all.sorted { $0.first < $1.first }
    }
}

extension BlockPort {
    fileprivate var window: GuestWindow? { if case .mapped(let window) = self { window } else { nil } }
    fileprivate var isReadable: Bool { if case .stream = self { false } else { true } }
}

/// Encodes pages as a lane would, and counts what is left of them.
private struct PageSampler: ~Copyable {
    /// The first batches only show what each codec makes of these pages, and what it costs: each first makes its tables.
    private static let trials: [CodecChoice] = [
        .zstd(level: 1), .zstd(level: 1), .lz4, .lz4, .zstd(level: 3), .zstd(level: 3),
    ]

    static let trialPages = trials.count * Limits.batchPages

    private let linkBytesPerNs: Double
    private var batch = Batch()
    private var encoder = BatchEncoder()
    private var chooser = CodecChooser()
    private var sample = MemorySample(pages: 0, zeroPages: 0, bytesPerPage: Double(Limits.pageBytes))
    private var trialsDone = 0
    private var room = PageBuffer(byteCount: Limits.batchPages * Limits.pageBytes)
    private var bytes = 0
    private var dataPages = 0
    /// What is counted was encoded as a lane would have.
    private var isChosen = false

    init(linkBytesPerS: Double) { linkBytesPerNs = linkBytesPerS / 1e9 }

    /// A run of pages behind those before it.
    mutating func add(_ first: PageNumber, count: Int, _ reader: GuestReader) throws(SystemError) {
        try reader.read(first: first, count: count, into: &room, at: 0)
        // A new record for each page at worst.
        if batch.recordCount + count > Limits.batchRecords || !batch.accepts(first, form: .raw, startsBlock: true)
            || batch.dataPages + count > Limits.batchPages
        {
            encode()
        }
        for page in 0..<count {
            let at = page * Limits.pageBytes
            let number = first + PageNumber(page)
            let isFirst = reader.layout.blocks.contains { $0.firstPage == number }
            Self.put(&batch, number, room, at, startsBlock: isFirst)
        }
    }

    private static func put(
        _ batch: inout Batch, _ page: PageNumber, _ room: borrowing PageBuffer, _ at: Int, startsBlock: Bool
    ) {
        batch.add(page, room.bytes.extracting(at..<at + Limits.pageBytes), startsBlock: startsBlock)
    }

    consuming func finish() -> MemorySample {
        encode()
        if dataPages > 0 { sample.bytesPerPage = Double(bytes) / Double(dataPages) }
        return sample
    }

    private mutating func encode() {
        let trial = trialsDone < Self.trials.count ? Self.trials[trialsDone] : nil
        let choice = trial ?? chooser.decide(linkBytesPerNs: linkBytesPerNs)
        let began = Instant.now()
        let result = encoder.encode(&batch, choice)
        let tookNs = Instant.now().ms(since: began) * 1e6
        let pages = result.rawPages + result.squeezedPages
        // What was on trial counts as long as there is nothing better.
        if trial == nil && !isChosen {
            (sample.pages, sample.zeroPages, bytes, dataPages, isChosen) = (0, 0, 0, 0, true)
        }
        sample.pages += pages + result.zeroPages
        sample.zeroPages += result.zeroPages
        batch.reset()
        guard pages > 0 else { return }
        let (left, whole) = (result.headBytes + result.rawBytes, Double(pages * Limits.pageBytes))
        let ratio = min(1, Double(left) / whole)
        if trial == .zstd(level: 1) { chooser.probed(ratio: ratio) }
        if trialsDone % 2 == 1 || trial == nil { chooser.measured(choice, nsPerByte: tookNs / whole, ratio: ratio) }
        if trial != nil { trialsDone += 1 }
        bytes += left
        dataPages += pages
    }
}
