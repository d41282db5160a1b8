internal import ApusCodec
public import ApusContent
public import ApusMemory
public import ApusSystem
internal import ApusWire

/// What a part of a guest's pages, spread over all of them, is like to send.
public struct MemorySample: Sendable, Equatable {
    public var pages: Int
    public var zeroPages: Int
    /// Share of the memory that its file has not: zero, and not looked at.
    public var holeShare = 0.0
    /// Found on disk images, and in what the destination holds; and the proofs that they take, one for neighbours here and there.
    public var diskPages = 0
    public var snapshotPages = 0
    public var proofs = 0
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

    /// The same with references: proofs instead of pages.
    public var bytesPerPageReferred: Double {
        let (referred, all) = (Double(diskPages + snapshotPages), Double(pages - zeroPages))
        guard all > 0 else { return bytesPerPage }
        return (Double(proofs * ReferencePayload.entryBytes) + (all - referred) * bytesPerPage) / all
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

    /// Where a page need not come from: a page of the destination's snapshot, or a block of the nth image.
    enum Place: Equatable {
        case snapshot(PageNumber)
        case disk(image: Int, block: UInt32)

        /// One proof is enough for both.
        func continues(_ before: Place?) -> Bool {
            switch (before, self) {
            case (.snapshot(let last), .snapshot(let page)): UInt64(last) + 1 == page
            case (.disk(let number, let last), .disk(let image, let block)):
                number == image && UInt64(last) + 1 == block
            default: false
            }
        }
    }

    /// In the order of a lane's look-up.
    func place(of bytes: RawSpan, _ page: PageNumber) -> Place? {
        if held.contains(page) { return .snapshot(page) }
        guard !images.isEmpty else { return nil }
        let hint = indexKey.hint(of: bytes)
        for (number, image) in images.enumerated() {
            if let block = image.block(of: hint) { return .disk(image: number, block: block) }
        }
        return nil
    }
}

/// Pages chosen once, so that the destination can be asked about them before they are counted.
public struct MemorySampler: Sendable {
    /// Pages that are read: 8 MiB; some tens of milliseconds of CPU time.
    public static let pagesMax = 2048
    /// Neighbours resemble each other, and zstd profits from it as it will in the migration.
    private static let runPages = 16

    private let reader: GuestReader
    private let runs: [PageRun]
    private let holeShare: Double

    typealias PageRun = (first: PageNumber, count: Int)

    /// - Parameter ports: how each block of `layout` can be read; those that only QEMU reaches are left out.
    /// - Returns: nil when none can be read.
    public init?(_ layout: Layout, _ ports: [BlockPort]) throws {
        let reader = GuestReader(layout, ports)
        let data = try reader.dataRuns()
        let readable = zip(layout.blocks, ports).reduce(0) { $0 + ($1.1.isReadable ? Int($1.0.pageCount) : 0) }
        let holeShare = 1 - Double(data.reduce(0) { $0 + $1.count }) / Double(max(readable, 1))
        self.init(data, reader, holeShare: holeShare)
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
        runs = Self.spread(all, Self.pagesMax / Self.runPages)
    }

    /// So many of them at most, from the middle of as many equal parts.
    private static func spread<Run>(_ all: [Run], _ count: Int) -> [Run] {
        guard all.count > count else { return all }
        let step = Double(all.count) / Double(count)
        return (0..<count).map { all[min(Int((Double($0) + 0.5) * step), all.count - 1)] }
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
        for run in runs { try sampler.add(run.first, count: run.count, reader) }
        var sample = sampler.finish()
        sample.holeShare = holeShare
        return sample
    }
}

extension BlockPort {
    var window: GuestWindow? { if case .mapped(let window) = self { window } else { nil } }
    var isReadable: Bool { if case .stream = self { false } else { true } }
}

/// Squeezes each run with each codec, and counts it in the one that a lane would choose: pages of all kinds may lie anywhere, and
/// a lane learns soon what it has before it.
private struct PageSampler: ~Copyable {
    /// Bytes that a run becomes; as many as it has, where a codec gains nothing.
    private struct Run {
        var pages: Int
        var rawBytes: Int
        var lz4Bytes = 0
        var zstd1Bytes = 0
        var zstd3Bytes = 0
    }

    private let linkBytesPerNs: Double
    private let references: SampleReferences?
    private var room = PageBuffer(byteCount: Limits.batchPages * Limits.pageBytes)
    private var batch = Batch()
    private var lz4 = Codec()
    private var zstd1 = Codec()
    private var zstd3 = Codec()
    private var sample = MemorySample(pages: 0, zeroPages: 0, bytesPerPage: Double(Limits.pageBytes))
    private var runs: [Run] = []

    init(linkBytesPerS: Double, _ references: SampleReferences?) {
        linkBytesPerNs = linkBytesPerS / 1e9
        self.references = references
    }

    /// - Parameter count: at most a batch.
    mutating func add(_ first: PageNumber, count: Int, _ reader: GuestReader) throws(SystemError) {
        try reader.read(first: first, count: count, into: &room, at: 0)
        sample.pages += count
        let data = Self.sort(&sample, room, first, count, references)
        guard data != 0 else { return }
        let pages = data.nonzeroBitCount
        var run = Run(pages: pages, rawBytes: pages * Limits.pageBytes)
        run.lz4Bytes = Self.squeeze(&lz4, .lz4, &batch, room, first, data)
        run.zstd1Bytes = Self.squeeze(&zstd1, .zstd(level: 1), &batch, room, first, data)
        run.zstd3Bytes = Self.squeeze(&zstd3, .zstd(level: 3), &batch, room, first, data)
        runs.append(run)
    }

    /// Counts what is zero or elsewhere; returns the other pages, bits counted from `first`.
    private static func sort(
        _ sample: inout MemorySample, _ room: borrowing PageBuffer, _ first: PageNumber, _ count: Int,
        _ references: SampleReferences?
    ) -> UInt64 {
        var data: UInt64 = 0
        var last: SampleReferences.Place?
        for page in 0..<count {
            let before = last
            last = nil
            let bytes = room.bytes.extracting(page * Limits.pageBytes..<(page + 1) * Limits.pageBytes)
            if bytes.isAllZero {
                sample.zeroPages += 1
                continue
            }
            last = references?.place(of: bytes, first + PageNumber(page))
            switch last {
            case .disk: sample.diskPages += 1
            case .snapshot: sample.snapshotPages += 1
            case nil: data |= 1 << UInt64(page)
            }
            if let last, !last.continues(before) { sample.proofs += 1 }
        }
        return data
    }

    /// Bytes that are left of the pages in `data`.
    private static func squeeze(
        _ codec: inout Codec, _ choice: CodecChoice, _ batch: inout Batch, _ room: borrowing PageBuffer,
        _ first: PageNumber, _ data: UInt64
    ) -> Int {
        batch.reset()
        for page in 0..<Limits.batchPages where data & (1 << UInt64(page)) != 0 {
            let bytes = room.bytes.extracting(page * Limits.pageBytes..<(page + 1) * Limits.pageBytes)
            batch.add(first + PageNumber(page), bytes, startsBlock: false)
        }
        let began = Instant.now()
        let result = codec.encoder.encode(&batch, choice)
        let tookNs = Instant.now().ms(since: began) * 1e6
        codec.nsPerByte.append(tookNs / Double(data.nonzeroBitCount * Limits.pageBytes))
        return result.squeezedBytes + result.rawBytes
    }

    consuming func finish() -> MemorySample {
        let speeds = (lz4: lz4.typicalNsPerByte, zstd1: zstd1.typicalNsPerByte, zstd3: zstd3.typicalNsPerByte)
        var (bytes, dataPages) = (0, 0)
        for run in runs {
            func ratio(_ left: Int) -> Double { Double(left) / Double(run.rawBytes) }
            var chooser = CodecChooser(
                lz4: (speeds.lz4, ratio(run.lz4Bytes)), zstd1: (speeds.zstd1, ratio(run.zstd1Bytes)),
                zstd3: (speeds.zstd3, ratio(run.zstd3Bytes)))
            let choice = chooser.decide(linkBytesPerNs: linkBytesPerNs)
            if choice != .raw { sample.squeezedPages += run.pages }
            dataPages += run.pages
            switch choice {
            case .raw: bytes += run.rawBytes
            case .lz4: bytes += run.lz4Bytes
            case .zstd(let level): bytes += level <= 1 ? run.zstd1Bytes : run.zstd3Bytes
            }
        }
        if dataPages > 0 { sample.bytesPerPage = Double(bytes) / Double(dataPages) }
        return sample
    }

    private struct Codec: ~Copyable {
        var encoder = BatchEncoder()
        /// Of each run.
        var nsPerByte: [Double] = []

        /// The median: a run may have waited for a processor, and the first one made the codec's tables.
        var typicalNsPerByte: Double {
            let sorted = nsPerByte.sorted()
            return sorted.isEmpty ? 0 : sorted[sorted.count / 2]
        }
    }
}
