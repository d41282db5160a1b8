internal import ApusMemory
internal import ApusSystem

// Up to sixteen pages that were new when they came, compressed together; integers are little-endian.
//
//   checksum u64 of all behind it | "APCH" u32 | pages u16 | codec u16 | body bytes u64
//   names    pages x 40 bytes:  hint u64 | digest
//   body     codec 1: zstd; 0: the pages as they are. The next chunk begins at a multiple of 8.

/// What a page is called: where to look for it, and the proof that it is found.
struct PageName: Equatable {
    static let byteCount = 8 + Digest.byteCount
    let hint: UInt64
    let digest: Digest

    init(of page: RawSpan, _ key: ContentKey) {
        hint = key.hint(of: page)
        digest = key.digest(of: page)
    }

    /// A page of zeros has hint 0.
    static let zero = PageName(hint: 0, digest: Digest(words: InlineArray(repeating: 0)))

    private init(hint: UInt64, digest: Digest) {
        self.hint = hint
        self.digest = digest
    }

    init(from bytes: RawSpan, at offset: Int) {
        hint = bytes.littleEndian(at: offset)
        digest = Digest(from: bytes, at: offset + 8)
    }

    func write(to buffer: inout PageBuffer, at offset: Int) {
        buffer.store(hint, at: offset)
        digest.write(to: &buffer, at: offset + 8)
    }
}

/// Where a page lies in a store.
///
/// ```
///   0: u8 | segment: u24 | 0: u5 | chunk's offset / 8: u23 | page in the chunk: u4
/// ```
struct PagePlace: Equatable {
    let bits: UInt64
    /// No page.
    static let none = PagePlace(bits: .max)

    init(bits: UInt64) { self.bits = bits }
    init(segment: UInt32, offset: Int, index: Int) {
        bits = UInt64(segment) << 32 | UInt64(offset / 8) << 4 | UInt64(index)
    }

    /// Another page of the same chunk.
    func of(_ index: Int) -> PagePlace { PagePlace(bits: bits & ~15 | UInt64(index)) }

    var segment: UInt32 { UInt32(truncatingIfNeeded: bits >> 32) }
    var offset: UInt64 { (bits & 0xffff_ffff) >> 4 * 8 }
    var index: Int { Int(bits & 15) }
}

enum ChunkLayout {
    static let headBytes = 24
    static let magic: UInt64 = 0x4843_5041
    static let bytesMax = headBytes + ContentLimits.chunkPages * (PageName.byteCount + Limits.pageBytes)

    /// Chunks begin at multiples of 8.
    static func next(after end: UInt64) -> UInt64 { (end + 7) & ~7 }
}

/// A chunk that is being filled.
struct ChunkWriter: ~Copyable {
    /// The first is as good as the third and twice as fast.
    private static let zstdLevel: Int32 = 1

    private(set) var count = 0
    private var pages = PageBuffer(byteCount: ContentLimits.chunkPages * Limits.pageBytes)
    private var packed = PageBuffer(byteCount: ChunkLayout.bytesMax)
    private let pieces: ZstdPieces

    init?() {
        guard let pieces = ZstdPieces(level: Self.zstdLevel) else { return nil }
        self.pieces = pieces
    }

    var isFull: Bool { count == ContentLimits.chunkPages }

    mutating func add(_ name: PageName, _ page: RawSpan) {
        precondition(!isFull && page.byteCount == Limits.pageBytes)
        pages.write(page, at: count * Limits.pageBytes)
        name.write(to: &packed, at: ChunkLayout.headBytes + count * PageName.byteCount)
        count += 1
    }

    func hint(_ index: Int) -> UInt64 {
        packed.word(at: ChunkLayout.headBytes + index * PageName.byteCount)
    }

    mutating func clear() { count = 0 }

    /// Makes the chunk ready to be written.
    /// - Returns: its bytes.
    mutating func pack() -> Int { Self.pack(count, pages, pieces, into: &packed) }

    private static func pack(
        _ count: Int, _ pages: borrowing PageBuffer, _ pieces: borrowing ZstdPieces, into packed: inout PageBuffer
    ) -> Int {
        let bodyAt = ChunkLayout.headBytes + count * PageName.byteCount
        let raw = pages.bytes.extracting(0..<count * Limits.pageBytes)
        // An eighth less is worth the time it takes to expand.
        let squeezed = pieces.squeeze(raw, into: &packed, at: bodyAt, limit: raw.byteCount * 7 / 8)
        if squeezed == nil { packed.write(raw, at: bodyAt) }
        let bodyBytes = squeezed ?? raw.byteCount
        let codec: UInt64 = squeezed == nil ? 0 : 1
        packed.store(ChunkLayout.magic | UInt64(count) << 32 | codec << 48, at: 8)
        packed.store(UInt64(bodyBytes), at: 16)
        let sum = Checksum.of(packed.bytes.extracting(8..<bodyAt + bodyBytes))
        packed.store(sum, at: 0)
        return bodyAt + bodyBytes
    }

    func write(_ byteCount: Int, to file: Descriptor, at offset: UInt64) throws(SystemError) {
        try file.write(packed.bytes.extracting(0..<byteCount), at: offset)
    }
}

/// Reads chunks back; the one it has read last is not read again.
struct ChunkReader: ~Copyable {
    private var stored = PageBuffer(byteCount: ChunkLayout.bytesMax)
    private var pages = PageBuffer(byteCount: ContentLimits.chunkPages * Limits.pageBytes)
    private let pieces: ZstdPieces
    private(set) var count = 0
    /// Of the whole chunk.
    private(set) var byteCount = 0
    private var loaded = PagePlace.none
    private var isExpanded = false

    init?() {
        guard let pieces = ZstdPieces(level: 1) else { return nil }
        self.pieces = pieces
    }

    /// What a segment's number means may change from now on.
    mutating func forget() { loaded = .none }

    /// Reads the chunk of a page. False: there is no whole chunk; then no page of it may be asked for.
    mutating func load(_ file: Descriptor, _ place: PagePlace) throws(SystemError) -> Bool {
        if loaded == place.of(0) { return true }
        loaded = .none
        count = 0
        isExpanded = false
        let have = try file.read(at: place.offset, into: &stored, 0..<ChunkLayout.bytesMax)
        guard let head = head(have) else { return false }
        byteCount = ChunkLayout.headBytes + head.pages * PageName.byteCount + head.bodyBytes
        guard byteCount <= have, Checksum.of(stored.bytes.extracting(8..<byteCount)) == stored.word(at: 0) else {
            return false
        }
        count = head.pages
        loaded = place.of(0)
        return true
    }

    /// Expands the chunk loaded last; false: it is not what its head says.
    mutating func expand() -> Bool {
        if !isExpanded { isExpanded = Self.expand(count, stored, pieces, into: &pages) }
        return isExpanded
    }

    private static func expand(
        _ count: Int, _ stored: borrowing PageBuffer, _ pieces: borrowing ZstdPieces, into pages: inout PageBuffer
    ) -> Bool {
        let bodyAt = ChunkLayout.headBytes + count * PageName.byteCount
        let bodyBytes = Int(stored.word(at: 16))
        let body = stored.bytes.extracting(bodyAt..<bodyAt + bodyBytes)
        if stored.word(at: 8) >> 48 == 1 {
            return pieces.expand(body, into: &pages, byteCount: count * Limits.pageBytes)
        }
        guard bodyBytes == count * Limits.pageBytes else { return false }
        pages.write(body, at: 0)
        return true
    }

    func name(_ index: Int) -> PageName {
        precondition(index < count)
        return PageName(from: stored.bytes, at: ChunkLayout.headBytes + index * PageName.byteCount)
    }

    @_lifetime(borrow self)
    func page(_ index: Int) -> RawSpan {
        precondition(index < count)
        return pages.bytes.extracting(index * Limits.pageBytes..<(index + 1) * Limits.pageBytes)
    }

    private func head(_ have: Int) -> (pages: Int, bodyBytes: Int)? {
        guard have >= ChunkLayout.headBytes, stored.word(at: 8) & 0xffff_ffff == ChunkLayout.magic else { return nil }
        let pages = Int(stored.word(at: 8) >> 32 & 0xffff)
        guard stored.word(at: 8) >> 48 <= 1, (1...ContentLimits.chunkPages).contains(pages),
            stored.word(at: 16) <= pages * Limits.pageBytes
        else {
            return nil
        }
        return (pages, Int(stored.word(at: 16)))
    }
}
