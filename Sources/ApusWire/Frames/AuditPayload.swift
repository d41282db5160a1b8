public import ApusMemory
public import ApusSystem

/// Digests of runs of pages, which the receiver compares with its own. Integers little-endian.
///
/// ```
///   per run, 40 bytes:  u32 first page, u8 pages (1 to 64, within one stripe and block), u8 1 if all zero, u16 zero,
///                       32 bytes SHA-256 of the pages (zeros when they are all zero)
/// ```
public enum AuditPayload {
    public static let entryBytes = 40
    public static let entriesMax = 64
    public static let bytesMax = entryBytes * entriesMax

    public struct Entry: Sendable, Equatable {
        public var first: PageNumber
        public var count: Int
        /// nil: all zero.
        public var digest: Digest?

        public init(first: PageNumber, count: Int, digest: Digest?) {
            self.first = first
            self.count = count
            self.digest = digest
        }
    }

    /// Writes entry `index`.
    public static func store(_ entry: Entry, at index: Int, in buffer: inout PageBuffer) {
        let at = index * entryBytes
        var bytes = buffer.mutableBytes
        bytes.store(littleEndian: entry.first, at: at)
        bytes.store(littleEndian: UInt8(entry.count), at: at + 4)
        bytes.store(littleEndian: UInt8(entry.digest == nil ? 1 : 0), at: at + 5)
        bytes.store(littleEndian: UInt16(0), at: at + 6)
        for word in 0..<4 { bytes.store(littleEndian: entry.digest?.words[word] ?? 0, at: at + 8 + word * 8) }
    }

    public static func entryCount(_ payload: RawSpan) throws(FrameError) -> Int {
        guard payload.byteCount > 0, payload.byteCount % entryBytes == 0 else {
            throw .wrongLength(kind: .audit, length: payload.byteCount)
        }
        return payload.byteCount / entryBytes
    }

    /// - Throws: `FrameError` for a run that is not within one stripe; whether the VM has such pages is the caller's to
    ///   check.
    public static func entry(_ payload: RawSpan, at index: Int) throws(FrameError) -> Entry {
        let at = index * entryBytes
        let first = payload.littleEndian(at: at, as: UInt32.self)
        let count = Int(payload.byte(at: at + 4))
        guard count > 0, Int(first & 63) + count <= 64, payload.byte(at: at + 5) <= 1 else {
            throw .badPayload(.audit, "run \(index) is not within 64 pages")
        }
        guard payload.byte(at: at + 5) == 0 else { return Entry(first: first, count: count, digest: nil) }
        var words = InlineArray<4, UInt64>(repeating: 0)
        for word in 0..<4 { words[word] = payload.littleEndian(at: at + 8 + word * 8) }
        return Entry(first: first, count: count, digest: Digest(words: words))
    }
}

/// The answer to an audit: which of its entries differ, a bit each.
public enum WantPayload {
    public static let byteCount = 8
}
