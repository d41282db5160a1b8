public import ApusMemory
public import ApusSystem

/// Pages whose content the receiver can get elsewhere: where, and the proof that it is the right one. All of one place.
/// Integers little-endian.
///
/// ```
///   0  u32  number of the frame, from 1; ascending
///   4  u16  entries: ascending, each page once, at most 64 pages in all
///   6  u8   place: 0 the receiver's snapshot of the VM, n the nth image that was agreed on
///   7  u8   zero
///   8  entries x 41:  u32 first page, u32 where the first is (page of the snapshot, or block of the image),
///                     u8 pages, that lie one after the other there and here, 32 bytes digest of them all
/// ```
public enum ReferencePayload {
    public static let headBytes = 8
    public static let entryBytes = 9 + Digest.byteCount
    public static let entriesMax = Limits.batchPages
    public static let bytesMax = headBytes + entriesMax * entryBytes

    public struct Head: Equatable, Sendable {
        public var number: UInt32
        public var count: Int
        public var place: UInt8
        public init(number: UInt32, count: Int, place: UInt8) {
            self.number = number
            self.count = count
            self.place = place
        }
    }

    public struct Entry: Equatable, Sendable {
        public var page: PageNumber
        public var at: UInt32
        public var pages: Int
        public var digest: Digest
        public init(page: PageNumber, at: UInt32, pages: Int, digest: Digest) {
            self.page = page
            self.at = at
            self.pages = pages
            self.digest = digest
        }
    }

    public static func store(_ head: Head, in buffer: inout PageBuffer) {
        buffer.store(UInt64(head.number) | UInt64(head.count) << 32 | UInt64(head.place) << 48, at: 0)
    }

    public static func store(_ entry: Entry, at index: Int, in buffer: inout PageBuffer) {
        let offset = headBytes + index * entryBytes
        buffer.store(UInt64(entry.page) | UInt64(entry.at) << 32, at: offset)
        var bytes = buffer.mutableBytes
        bytes.store(littleEndian: UInt8(entry.pages), at: offset + 8)
        entry.digest.write(to: &buffer, at: offset + 9)
    }

    /// - Throws: `FrameError` when the length is not that of its entries, or their pages are not as is said above.
    public static func head(_ payload: RawSpan) throws(FrameError) -> Head {
        guard payload.byteCount >= headBytes else {
            throw .wrongLength(kind: .reference, length: payload.byteCount)
        }
        let word = payload.littleEndian(at: 0, as: UInt64.self)
        let count = Int(word >> 32 & 0xffff)
        guard (1...entriesMax).contains(count), payload.byteCount == headBytes + count * entryBytes, word >> 56 == 0
        else { throw .wrongLength(kind: .reference, length: payload.byteCount) }
        var (next, pages): (UInt64, Int) = (0, 0)
        for index in 0..<count {
            let entry = entry(payload, at: index)
            pages += entry.pages
            guard (1...Limits.referencePages).contains(entry.pages), pages <= Limits.batchPages else {
                throw .badPayload(.reference, "\(entry.pages) pages at \(entry.page), \(pages) in all")
            }
            guard entry.page >= next else { throw .badPayload(.reference, "page \(entry.page) behind \(next)") }
            next = UInt64(entry.page) + UInt64(entry.pages)
        }
        return Head(number: UInt32(truncatingIfNeeded: word), count: count, place: UInt8(word >> 48 & 0xff))
    }

    public static func entry(_ payload: RawSpan, at index: Int) -> Entry {
        let offset = headBytes + index * entryBytes
        return Entry(
            page: payload.littleEndian(at: offset), at: payload.littleEndian(at: offset + 4),
            pages: Int(payload.byte(at: offset + 8)), digest: Digest(from: payload, at: offset + 9))
    }
}

/// What became of one frame of references; 32 bytes. Bit n is its nth page; one in neither set had been overtaken by
/// newer content.
///
/// ```
///   0 u32 number of the frame   4 u32 zero   8 u64 proved and installed   16 u64 to be sent as pages   24 u64 ns of reading
/// ```
public struct ReferenceAnswer: Equatable, Sendable {
    public static let byteCount = 32
    public var number: UInt32
    public var proved: UInt64
    public var refused: UInt64
    public var readNs: UInt64

    public init(number: UInt32, proved: UInt64, refused: UInt64, readNs: UInt64) {
        self.number = number
        self.proved = proved
        self.refused = refused
        self.readNs = readNs
    }

    public func store(in buffer: inout PageBuffer) {
        buffer.store(UInt64(number), at: 0)
        buffer.store(proved, at: 8)
        buffer.store(refused, at: 16)
        buffer.store(readNs, at: 24)
    }

    public init(_ payload: RawSpan) throws(FrameError) {
        guard payload.byteCount == Self.byteCount else {
            throw .wrongLength(kind: .referenceAnswer, length: payload.byteCount)
        }
        number = payload.littleEndian(at: 0)
        proved = payload.littleEndian(at: 8)
        refused = payload.littleEndian(at: 16)
        readNs = payload.littleEndian(at: 24)
        guard proved & refused == 0 else { throw .badPayload(.referenceAnswer, "pages both right and wrong") }
    }
}

/// Hints of the pages that the destination holds in a snapshot of the VM; several frames, ascending.
///
/// ```
///   0 u32 pages of the snapshot   4 u32 first page   8 hints x 8 (0: zeros, or nothing is there)
/// ```
///
/// Pages that no frame covers have hint 0.
public enum HeldPayload {
    public static let headBytes = 8
    public static let hintsMax = 64 << 10
    public static let bytesMax = headBytes + hintsMax * 8

    /// One frame; nil when all its hints are 0.
    public static func bytes(
        pageCount: PageNumber, first: PageNumber, count: Int, _ hint: (PageNumber) -> UInt64
    ) -> [UInt8]? {
        precondition(count <= hintsMax)
        var writer = ByteWriter()
        writer.put(pageCount)
        writer.put(first)
        var isEmpty = true
        for page in first..<first + PageNumber(count) {
            let hint = hint(page)
            if hint != 0 { isEmpty = false }
            writer.put(hint)
        }
        return isEmpty ? nil : writer.bytes
    }

    /// - Throws: `FrameError` when it reaches behind the snapshot's end.
    public static func head(
        _ payload: RawSpan
    ) throws(FrameError) -> (pageCount: PageNumber, first: PageNumber, count: Int) {
        guard payload.byteCount >= headBytes, payload.byteCount % 8 == 0, payload.byteCount <= bytesMax else {
            throw .wrongLength(kind: .held, length: payload.byteCount)
        }
        let pageCount = payload.littleEndian(at: 0, as: UInt32.self)
        let first = payload.littleEndian(at: 4, as: UInt32.self)
        let count = payload.byteCount / 8 - 1
        guard UInt64(first) + UInt64(count) <= UInt64(pageCount) else {
            throw .badPayload(.held, "\(count) pages from \(first) of \(pageCount)")
        }
        return (pageCount, first, count)
    }

    public static func hint(_ payload: RawSpan, at index: Int) -> UInt64 {
        payload.littleEndian(at: headBytes + index * 8)
    }
}
