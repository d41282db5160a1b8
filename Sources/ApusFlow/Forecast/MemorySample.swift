internal import ApusCodec
public import ApusContent
public import ApusMemory
public import ApusSystem
internal import ApusWire

/// What a part of a guest's pages, chosen at random, is like to send.
public struct MemorySample: Sendable, Equatable {
    public var pages: Int
    public var zeroPages: Int
    /// Share of the memory that its file has not: zero, and not looked at.
    public var holeShare = 0.0
    /// Found on disk images, and in what the destination holds.
    public var diskPages = 0
    public var snapshotPages = 0
    /// Made smaller by a codec.
    public var squeezedPages = 0
    /// Wire bytes of a page that is not zero, in the codec that a lane would choose for the link.
    public var bytesPerPage: Double
    public init(pages: Int, zeroPages: Int, bytesPerPage: Double) {
        self.pages = pages
        self.zeroPages = zeroPages
        self.bytesPerPage = bytesPerPage
    }
    public var zeroShare: Double { holeShare + share(zeroPages) }
    /// Such pages as a share of all memory.
    public func share(_ count: Int) -> Double { (1 - holeShare) * seenShare(count) }
    private func seenShare(_ count: Int) -> Double { pages > 0 ? Double(count) / Double(pages) : 0 }
    /// Wire bytes of any of the pages that were looked at, zeros among them.
    public var bytesPerSeenPage: Double { bytesPerPage * (1 - seenShare(zeroPages)) }

    /// The same with references: a proof instead of the page.
    public var bytesPerPageReferred: Double {
        let (referred, all) = (Double(diskPages + snapshotPages), Double(pages - zeroPages))
        guard all > 0 else { return bytesPerPage }
        return (referred * Double(ReferencePayload.entryBytes) + (all - referred) * bytesPerPage) / all
    }
}

/// Where sampled pages need not come from, as far as it is known before a migration.
public struct SampleReferences: Sendable {
    public var images: [BlockIndex]
    public var indexKey: ContentKey
    /// Pages that the destination holds.
    public var held: Set<PageNumber> = []

    public init(images: [BlockIndex], indexKey: ContentKey) {
        self.images = images
        self.indexKey = indexKey
    }

    enum Place { case snapshot, disk }

    /// In the order of a lane's look-up.
    func place(of bytes: RawSpan, _ page: PageNumber) -> Place? {
        if held.contains(page) { return .snapshot }
        guard !images.isEmpty else { return nil }
        let hint = indexKey.hint(of: bytes)
        return images.contains { $0.block(of: hint) != nil } ? .disk : nil
    }
}

/// Pages chosen once, so that the destination can be asked about them before they are counted.
public struct MemorySampler: Sendable {
    /// Pages that are read: 8 MiB; some tens of milliseconds of CPU time.
    public static let pagesMax = 2048
    /// Neighbours resemble each other, and zstd profits from it as it will in the migration.
    private static let runPages = 16

    private let reader: GuestReader
    /// The codecs are tried on these.
    private let trialRuns: [PageRun]
    private let runs: [PageRun]
    private let holeShare: Double

    typealias PageRun = (first: PageNumber, count: Int)

    /// - Parameter ports: how each block of `layout` can be read; those that only QEMU reaches are left out.
    /// - Returns: nil when none can be read.
    public init?(_ layout: Layout, _ ports: [BlockPort]) throws {
        let data = try Self.dataRuns(layout, ports)
        let readable = zip(layout.blocks, ports).reduce(0) { $0 + ($1.1.isReadable ? Int($1.0.pageCount) : 0) }
        let holeShare = 1 - Double(data.reduce(0) { $0 + $1.count }) / Double(max(readable, 1))
        self.init(data, GuestReader(layout, ports), holeShare: holeShare)
    }

    /// - Parameter data: runs of readable pages, ascending.
    init?(_ data: [PageRun], _ reader: GuestReader, holeShare: Double = 0) {
        let all = data.flatMap { run in
            stride(from: 0, to: run.count, by: Self.runPages).map {
                (first: run.first + PageNumber($0), count: min(Self.runPages, run.count - $0))
            }
        }
        if all.isEmpty { return nil }
        self.reader = reader
        self.holeShare = holeShare
        trialRuns = Self.spread(all, PageSampler.trialPages / Self.runPages)
        runs = Self.spread(all, Self.pagesMax / Self.runPages)
    }

    /// So many of them at most, from the middle of as many equal parts.
    private static func spread<Run>(_ all: [Run], _ count: Int) -> [Run] {
        guard all.count > count else { return all }
        let step = Double(all.count) / Double(count)
        return (0..<count).map { all[min(Int((Double($0) + 0.5) * step), all.count - 1)] }
    }

    /// What the files have; of memory in no file, all.
    private static func dataRuns(_ layout: Layout, _ ports: [BlockPort]) throws -> [PageRun] {
        var all = try layout.dataRuns(ports.map(\.window))
        for (block, port) in zip(layout.blocks, ports) where port.isReadable && port.window == nil {
            if block.pageCount > 0 { all.append((block.firstPage, Int(block.pageCount))) }
        }
        return all.sorted { $0.first < $1.first }
    }

    /// Names of the pages that are not zero. Blocks; the guest runs on.
    public func hints(_ key: ContentKey) throws(SystemError) -> [PageNumber: UInt64] {
        var hints: [PageNumber: UInt64] = [:]
        var room = PageBuffer(byteCount: Self.runPages * Limits.pageBytes)
        for run in runs {
            try reader.read(first: run.first, count: run.count, into: &room, at: 0)
            for page in 0..<run.count {
                let bytes = room.bytes.extracting(page * Limits.pageBytes..<(page + 1) * Limits.pageBytes)
                if !bytes.isAllZero { hints[run.first + PageNumber(page)] = key.hint(of: bytes) }
            }
        }
        return hints
    }

    /// Blocks; the guest runs on.
    public func take(linkBytesPerS: Double, _ references: SampleReferences? = nil) throws(SystemError) -> MemorySample {
        var sampler = PageSampler(linkBytesPerS: linkBytesPerS, references)
        for run in trialRuns + runs { try sampler.add(run.first, count: run.count, reader) }
        var sample = sampler.finish()
        sample.holeShare = holeShare
        return sample
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

    private let references: SampleReferences?

    init(linkBytesPerS: Double, _ references: SampleReferences?) {
        linkBytesPerNs = linkBytesPerS / 1e9
        self.references = references
    }

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

    /// Takes out of the batch what can be had elsewhere.
    private mutating func refer() {
        guard let references else { return }
        var room = Limits.batchRecords - batch.recordCount
        var slots: UInt64 = 0
        var slot = 0
        var (onDisk, inSnapshot) = (0, 0)
        for index in 0..<batch.recordCount where batch.records[index].form != .zero {
            let record = batch.records[index]
            for page in record.first..<record.first + PageNumber(record.count) {
                defer { slot += 1 }
                let bytes = batch.data.bytes.extracting(slot * Limits.pageBytes..<(slot + 1) * Limits.pageBytes)
                guard room > 0, !bytes.isAllZero, let place = references.place(of: bytes, page) else { continue }
                switch place {
                case .disk: onDisk += 1
                case .snapshot: inSnapshot += 1
                }
                slots |= 1 << UInt64(slot)
                room -= 1
            }
        }
        batch.remove(slots: slots)
        sample.diskPages += onDisk
        sample.snapshotPages += inSnapshot
        sample.pages += onDisk + inSnapshot
    }

    private mutating func encode() {
        let trial = trialsDone < Self.trials.count ? Self.trials[trialsDone] : nil
        if trial == nil {
            // What was on trial counts as long as there is nothing better.
            if !isChosen {
                sample = MemorySample(pages: 0, zeroPages: 0, bytesPerPage: sample.bytesPerPage)
                (bytes, dataPages, isChosen) = (0, 0, true)
            }
            refer()
        }
        guard batch.hasRecords() else { return batch.reset() }
        let choice = trial ?? chooser.decide(linkBytesPerNs: linkBytesPerNs)
        let began = Instant.now()
        let result = encoder.encode(&batch, choice)
        let tookNs = Instant.now().ms(since: began) * 1e6
        let pages = result.rawPages + result.squeezedPages
        sample.pages += pages + result.zeroPages
        sample.zeroPages += result.zeroPages
        sample.squeezedPages += result.squeezedPages
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
