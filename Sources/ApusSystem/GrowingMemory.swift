internal import CApus
internal import Glibc

/// Memory for tables whose size is known only as they fill: zeros at first, grown by the kernel without a copy, and only
/// what was written takes any room.
///
/// Move-only: the thread that holds it owns the bytes.
// @unchecked: the memory has exactly one owner, and moves with it.
@safe public struct GrowingMemory: ~Copyable, @unchecked Sendable {
    private var base: UnsafeMutableRawPointer?
    public private(set) var byteCount = 0

    /// The first mapping; later ones are twice as large.
    private static let firstBytes = 64 << 10

    public init() { unsafe base = nil }

    deinit { if let base = unsafe base { unsafe munmap(base, byteCount) } }

    /// Makes room for at least `count` bytes. False when the kernel has none to give; what there was stays.
    public mutating func grow(toHold count: Int) -> Bool {
        if count <= byteCount { return true }
        var larger = max(byteCount, Self.firstBytes)
        while larger < count { larger *= 2 }
        let moved = unsafe capus_grow(base, byteCount, larger)
        guard let moved = unsafe moved, unsafe moved != MAP_FAILED else { return false }
        unsafe base = moved
        byteCount = larger
        return true
    }

    public var bytes: RawSpan {
        @_lifetime(borrow self) borrowing get {
            guard let base = unsafe base else { return RawSpan() }
            let span = unsafe RawSpan(_unsafeStart: UnsafeRawPointer(base), byteCount: byteCount)
            return unsafe _overrideLifetime(span, borrowing: self)
        }
    }

    public var mutableBytes: MutableRawSpan {
        @_lifetime(&self) mutating get {
            guard let base = unsafe base else { return MutableRawSpan() }
            let span = unsafe MutableRawSpan(_unsafeStart: base, byteCount: byteCount)
            return unsafe _overrideLifetime(span, mutating: &self)
        }
    }

    /// Sets bytes to one value; traps outside the memory.
    public mutating func fill(_ value: UInt8, at offset: Int, count: Int) {
        precondition(offset >= 0 && count >= 0 && offset <= byteCount - count)
        if let base = unsafe base { unsafe memset(base + offset, Int32(value), count) }
    }
}
