internal import ApusMemory
internal import ApusSystem

/// Appends chunks to the last segment of a store, and begins another when it is full.
struct SegmentWriter: ~Copyable {
    private let folder: String
    /// Bytes of each segment, the last one included.
    private(set) var sizes: [UInt32: UInt64] = [:]
    private var last: OpenSegment?
    private var lastPages = SegmentPages()

    private struct OpenSegment {
        let number: UInt32
        let file: Descriptor
        /// Where the next chunk begins.
        var end: UInt64
    }

    init(_ folder: String) { self.folder = folder }

    var byteCount: UInt64 { sizes.values.reduce(0, +) }

    mutating func add(_ number: UInt32, _ byteCount: UInt64) { sizes[number] = byteCount }
    mutating func remove(_ number: UInt32) { sizes[number] = nil }
    /// None may be open.
    mutating func forgetAll() { sizes = [:] }

    /// Writes a packed chunk behind the last one.
    /// - Returns: the place of its first page.
    mutating func append(_ chunk: borrowing ChunkWriter, _ byteCount: Int) throws(SystemError) -> PagePlace {
        if let open = last, open.end + UInt64(byteCount) > UInt64(ContentLimits.segmentBytes) { try seal() }
        var open: OpenSegment
        if let last { open = last } else { open = try begin() }
        let first = PagePlace(segment: open.number, offset: Int(open.end), index: 0)
        do throws(SystemError) {
            try chunk.write(byteCount, to: open.file, at: open.end)
            for index in 0..<chunk.count {
                guard lastPages.append(chunk.hint(index), first.of(index)) else {
                    throw SystemError("mmap", code: SystemError.noMemory)
                }
            }
        } catch {
            // Half a chunk would hide what is written behind it.
            try? open.file.truncate(toByteCount: open.end)
            throw error
        }
        open.end = ChunkLayout.next(after: open.end + UInt64(byteCount))
        last = open
        sizes[open.number] = open.end
        return first
    }

    private mutating func begin() throws(SystemError) -> OpenSegment {
        let number = (sizes.keys.max() ?? 0) + 1
        guard number <= ContentLimits.segmentNumberMax else {
            throw SystemError("segment \(number)", code: SystemError.tooLarge)
        }
        let file = try Descriptor.create(SegmentLayout.segmentPath(folder, number))
        var head = PageBuffer(byteCount: SegmentLayout.headBytes)
        head.store(SegmentLayout.magic, at: 0)
        head.store(0, at: 8)
        try file.write(head.bytes, at: 0)
        lastPages.clear()
        return OpenSegment(number: number, file: file, end: UInt64(SegmentLayout.headBytes))
    }

    /// Gives up the last segment as it is; its index is made at the next ``SnapshotStore/reload()``.
    mutating func letGo() { last = nil }

    /// Returns when all chunks are on the disk.
    func sync() throws(SystemError) { try last?.file.sync() }

    /// The last segment is full: it gets its index, and the next chunk begins another.
    mutating func seal() throws(SystemError) {
        guard let open = last else { return }
        try open.file.sync()
        try lastPages.save(SegmentLayout.indexPath(folder, open.number))
        last = nil
    }
}
