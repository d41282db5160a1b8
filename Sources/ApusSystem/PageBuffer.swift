internal import Glibc

/// A fixed, page-aligned block of memory outside the Swift heap; allocated once, reused for ever.
///
/// Move-only: the thread that holds it owns the bytes.
// @unchecked: the memory has exactly one owner, and moves with it.
@safe public struct PageBuffer: ~Copyable, @unchecked Sendable {
    let base: UnsafeMutableRawPointer
    public let byteCount: Int

    public init(byteCount: Int) {
        precondition(byteCount > 0)
        unsafe base = .allocate(byteCount: byteCount, alignment: 4096)
        self.byteCount = byteCount
    }

    deinit { unsafe base.deallocate() }

    public var bytes: RawSpan {
        @_lifetime(borrow self) borrowing get {
            let span = unsafe RawSpan(_unsafeStart: UnsafeRawPointer(base), byteCount: byteCount)
            return unsafe _overrideLifetime(span, borrowing: self)
        }
    }

    public var mutableBytes: MutableRawSpan {
        @_lifetime(&self) mutating get {
            let span = unsafe MutableRawSpan(_unsafeStart: base, byteCount: byteCount)
            return unsafe _overrideLifetime(span, mutating: &self)
        }
    }

    /// Copies `source` to `offset`; traps when it would leave the buffer.
    @inline(__always)
    public mutating func write(_ source: RawSpan, at offset: Int) {
        precondition(offset >= 0 && source.byteCount <= byteCount - offset)
        unsafe source.withUnsafeBytes { bytes in
            if let from = bytes.baseAddress { unsafe (base + offset).copyMemory(from: from, byteCount: bytes.count) }
        }
    }

    /// Stores one little-endian word; traps outside the buffer.
    public mutating func store(_ word: UInt64, at offset: Int) {
        var bytes = mutableBytes
        bytes.store(littleEndian: word, at: offset)
    }

    /// Loads one little-endian word; traps outside the buffer.
    public func word(at offset: Int) -> UInt64 { bytes.littleEndian(at: offset) }

    /// The buffer as the kernel sees it from outside this process; valid while the buffer is.
    public func asProcessWindow() -> ProcessWindow {
        ProcessWindow(pid: getpid(), address: unsafe UInt64(UInt(bitPattern: base)), byteCount: UInt64(byteCount))
    }

    /// Copies bytes from one place of the buffer to another; the ranges may overlap.
    public mutating func copyWithin(from: Int, to: Int, _ count: Int) {
        precondition(from >= 0 && to >= 0 && count >= 0 && from <= byteCount - count && to <= byteCount - count)
        unsafe memmove(base + to, base + from, count)
    }
}

extension RawSpan {
    /// True when every byte is zero. Leaves at the first block that is not.
    ///
    /// The span's length must be a multiple of 64, as every page's is.
    @inlinable
    public var isAllZero: Bool {
        precondition(byteCount % 64 == 0)
        var offset = 0
        while offset < byteCount {
            var bits: UInt64 = 0
            for word in 0..<8 { bits |= littleEndian(at: offset + word * 8, as: UInt64.self) }
            if bits != 0 { return false }
            offset += 64
        }
        return true
    }

    /// True when both spans hold the same bytes.
    public func equals(_ other: RawSpan) -> Bool {
        guard byteCount == other.byteCount else { return false }
        return unsafe withUnsafeBytes { a in
            unsafe other.withUnsafeBytes { b in
                guard let a = a.baseAddress, let b = b.baseAddress else { return true }
                return unsafe memcmp(a, b, byteCount) == 0
            }
        }
    }
}
