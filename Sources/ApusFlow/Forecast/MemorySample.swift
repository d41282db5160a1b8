internal import ApusCodec
public import ApusMemory
internal import ApusSystem

/// What a part of a guest's pages, chosen at random, is like to send.
public struct MemorySample: Sendable, Equatable {
    public var pages: Int
    public var zeroPages: Int
    /// Wire bytes of a page that is not zero, in the codec that a lane would choose for the link.
    public var bytesPerPage: Double
    public init(pages: Int, zeroPages: Int, bytesPerPage: Double) {
        self.pages = pages
        self.zeroPages = zeroPages
        self.bytesPerPage = bytesPerPage
    }
    public var zeroShare: Double { pages > 0 ? Double(zeroPages) / Double(pages) : 0 }
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
        let reader = GuestReader(layout, ports)
        let runs = chooseRuns(layout, reader.readable)
        guard !runs.isEmpty else { return nil }
        var sampler = PageSampler(linkBytesPerS: linkBytesPerS)
        for run in runs { try sampler.add(run.first, count: run.count, reader) }
        return sampler.finish()
    }

    /// Random runs of readable pages, ascending, each at most once.
    private static func chooseRuns(_ layout: Layout, _ readable: PageRanges) -> [(first: PageNumber, count: Int)] {
        var all: [(first: PageNumber, count: Int)] = []
        for block in layout.blocks where block.pageCount > 0 && readable.contains(block.firstPage) {
            let end = block.firstPage + block.pageCount
            for first in stride(from: block.firstPage, to: end, by: runPages) {
                all.append((first, Int(min(PageNumber(runPages), end - first))))
            }
        }
        return all.shuffled().prefix(pagesMax / runPages).sorted { $0.first < $1.first }
    }
}

/// Encodes pages as a lane would, and counts what is left of them.
private struct PageSampler: ~Copyable {
    /// The first batches only show what each codec makes of these pages, and what it costs: each first makes its tables.
    private static let trials: [CodecChoice] = [
        .zstd(level: 1), .zstd(level: 1), .lz4, .lz4, .zstd(level: 3), .zstd(level: 3),
    ]

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
        sample.pages += pages + result.zeroPages
        sample.zeroPages += result.zeroPages
        batch.reset()
        guard pages > 0 else { return }
        let (left, whole) = (result.headBytes + result.rawBytes, Double(pages * Limits.pageBytes))
        let ratio = min(1, Double(left) / whole)
        if trial == .zstd(level: 1) { chooser.probed(ratio: ratio) }
        if trialsDone % 2 == 1 || trial == nil { chooser.measured(choice, nsPerByte: tookNs / whole, ratio: ratio) }
        if trial != nil { trialsDone += 1 }
        // A codec on trial counts as long as there is nothing better.
        if trial == nil && !isChosen { (bytes, dataPages, isChosen) = (0, 0, true) }
        bytes += left
        dataPages += pages
    }
}
