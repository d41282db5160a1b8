// Integers in and out of raw bytes, bounds-checked, in a named byte order. The only place in the package that
// reinterprets bytes as integers.

extension RawSpan {
    /// Loads a big-endian integer; traps when it would leave the span.
    @inlinable @inline(__always)
    public func bigEndian<T: FixedWidthInteger & BitwiseCopyable>(at offset: Int, as type: T.Type = T.self) -> T {
        // The load itself checks its bounds; "unsafe" refers to bit patterns, and every pattern is a valid integer.
        T(bigEndian: unsafe unsafeLoadUnaligned(fromByteOffset: offset, as: T.self))
    }

    /// Loads a little-endian integer; traps when it would leave the span.
    @inlinable @inline(__always)
    public func littleEndian<T: FixedWidthInteger & BitwiseCopyable>(at offset: Int, as type: T.Type = T.self) -> T {
        T(littleEndian: unsafe unsafeLoadUnaligned(fromByteOffset: offset, as: T.self))
    }

    @inlinable @inline(__always)
    public func byte(at offset: Int) -> UInt8 {
        unsafe unsafeLoadUnaligned(fromByteOffset: offset, as: UInt8.self)
    }
}

extension MutableRawSpan {
    @inlinable @inline(__always) @_lifetime(self: copy self)
    public mutating func store<T: FixedWidthInteger & BitwiseCopyable>(bigEndian value: T, at offset: Int) {
        storeBytes(of: value.bigEndian, toByteOffset: offset, as: T.self)
    }

    @inlinable @inline(__always) @_lifetime(self: copy self)
    public mutating func store<T: FixedWidthInteger & BitwiseCopyable>(littleEndian value: T, at offset: Int) {
        storeBytes(of: value.littleEndian, toByteOffset: offset, as: T.self)
    }
}

extension [UInt8] {
    /// The array's bytes, without a copy.
    public var rawBytes: RawSpan {
        // `Span.bytes` is unsafe for elements with padding; bytes have none.
        @_lifetime(borrow self) get { unsafe span.bytes }
    }
}

extension Span where Element == UInt8 {
    /// The same bytes, raw.
    public var rawBytes: RawSpan {
        // `bytes` is unsafe for elements with padding; bytes have none.
        @_lifetime(copy self) get { unsafe bytes }
    }
}

extension MutableSpan where Element == UInt8 {
    /// The same bytes, raw.
    public var rawBytes: MutableRawSpan {
        // `mutableBytes` is unsafe for elements with invalid bit patterns; bytes have none.
        @_lifetime(&self) mutating get { unsafe mutableBytes }
    }
}

extension UInt32 {
    /// Calls `body` with first bit and length of each run of set bits, lowest first.
    @inlinable @inline(__always)
    public func eachRun(_ body: (_ first: Int, _ count: Int) -> Void) {
        var left = UInt64(self)
        while left != 0 {
            let first = left.trailingZeroBitCount
            let count = (~(left >> UInt64(first))).trailingZeroBitCount
            body(first, count)
            left &= ~(((1 << UInt64(count)) - 1) << UInt64(first))
        }
    }
}
