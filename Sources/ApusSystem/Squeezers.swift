internal import CLZ4
internal import CXXHash
internal import CZstd

/// XXH3, 64 bits: finds transmission errors; no proof against an attacker.
public enum Checksum {
    public static func of(_ bytes: RawSpan) -> UInt64 {
        unsafe bytes.withUnsafeBytes { unsafe XXH3_64bits($0.baseAddress, $0.count) }
    }
}

/// The same sum over bytes that do not lie in one piece. Reusable; allocates once.
// @unchecked: the state has one owner.
@safe public struct RunningChecksum: ~Copyable, @unchecked Sendable {
    private let state: OpaquePointer

    public init() throws(SystemError) {
        guard let state = unsafe XXH3_createState() else { throw SystemError("XXH3_createState", code: 12) }
        unsafe self.state = state
    }
    deinit { unsafe XXH3_freeState(state) }

    public mutating func of(_ first: RawSpan, _ second: RawSpan) -> UInt64 {
        unsafe XXH3_64bits_reset(state)
        unsafe first.withUnsafeBytes { _ = unsafe XXH3_64bits_update(state, $0.baseAddress, $0.count) }
        unsafe second.withUnsafeBytes { _ = unsafe XXH3_64bits_update(state, $0.baseAddress, $0.count) }
        return unsafe XXH3_64bits_digest(state)
    }
}

/// Compresses one continuous zstd stream; each ``squeeze(_:into:at:)`` ends at a flush, so the receiver can decode what
/// it has, and later pages may refer to earlier ones.
// @unchecked: the context has one owner.
@safe public struct ZstdSqueezer: ~Copyable, @unchecked Sendable {
    private let context: OpaquePointer
    public init?(level: Int32) {
        guard let context = unsafe ZSTD_createCCtx() else { return nil }
        unsafe self.context = context
        unsafe ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, level)
    }
    deinit { unsafe ZSTD_freeCCtx(context) }

    /// Changes the level for the data that follows.
    public func setLevel(_ level: Int32) { unsafe ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, level) }

    /// Returns the bytes written at `offset`; nil when they did not fit (the stream is then broken: make a new one).
    public func squeeze(_ source: RawSpan, into target: inout PageBuffer, at offset: Int) -> Int? {
        precondition(offset >= 0 && offset < target.byteCount)
        return unsafe source.withUnsafeBytes { bytes in
            var input = unsafe ZSTD_inBuffer(src: bytes.baseAddress, size: bytes.count, pos: 0)
            var output = unsafe ZSTD_outBuffer(dst: target.base + offset, size: target.byteCount - offset, pos: 0)
            let left = unsafe ZSTD_compressStream2(context, &output, &input, ZSTD_e_flush)
            guard left == 0, unsafe input.pos == input.size else { return nil }
            return unsafe output.pos
        }
    }

    /// Size of `source` compressed on its own; leaves no trace in any stream. For probing.
    public static func probe(_ source: RawSpan, scratch: inout PageBuffer) -> Int {
        unsafe source.withUnsafeBytes { bytes in
            let size = unsafe ZSTD_compress(scratch.base, scratch.byteCount, bytes.baseAddress, bytes.count, 1)
            return ZSTD_isError(size) != 0 ? bytes.count : size
        }
    }
}

/// Decodes what ``ZstdSqueezer`` wrote, in the same order.
// @unchecked: the context has one owner.
@safe public struct ZstdExpander: ~Copyable, @unchecked Sendable {
    private let context: OpaquePointer
    public init?() {
        guard let context = unsafe ZSTD_createDCtx() else { return nil }
        unsafe self.context = context
        // A hostile stream cannot make us allocate more than 8 MiB of history.
        unsafe ZSTD_DCtx_setParameter(context, ZSTD_d_windowLogMax, 23)
    }
    deinit { unsafe ZSTD_freeDCtx(context) }

    /// True when `source` decoded to exactly `byteCount` bytes at the front of `target`.
    public func expand(_ source: RawSpan, into target: inout PageBuffer, byteCount: Int) -> Bool {
        precondition(byteCount <= target.byteCount)
        return unsafe source.withUnsafeBytes { bytes in
            var input = unsafe ZSTD_inBuffer(src: bytes.baseAddress, size: bytes.count, pos: 0)
            var output = unsafe ZSTD_outBuffer(dst: target.base, size: byteCount, pos: 0)
            while unsafe input.pos < input.size || output.pos < output.size {
                let before = unsafe (input.pos, output.pos)
                let result = unsafe ZSTD_decompressStream(context, &output, &input)
                if ZSTD_isError(result) != 0 { return false }
                // No progress: the input is short, or longer than the pages it stands for.
                if unsafe input.pos == before.0 && output.pos == before.1 { return false }
            }
            return true
        }
    }
}

/// LZ4 blocks: each stands alone.
public enum LZ4 {
    /// Returns the bytes written at `offset`; nil when they did not fit into `limit` bytes.
    public static func squeeze(_ source: RawSpan, into target: inout PageBuffer, at offset: Int, limit: Int) -> Int? {
        precondition(offset >= 0 && limit <= target.byteCount - offset)
        return unsafe source.withUnsafeBytes { bytes in
            guard let from = bytes.baseAddress else { return nil }
            let size = unsafe LZ4_compress_default(from, target.base + offset, Int32(bytes.count), Int32(limit))
            return size > 0 ? Int(size) : nil
        }
    }

    /// True when `source` decoded to exactly `byteCount` bytes at the front of `target`.
    public static func expand(_ source: RawSpan, into target: inout PageBuffer, byteCount: Int) -> Bool {
        precondition(byteCount <= target.byteCount)
        return unsafe source.withUnsafeBytes { bytes in
            guard let from = bytes.baseAddress else { return byteCount == 0 }
            return unsafe LZ4_decompress_safe(from, target.base, Int32(bytes.count), Int32(byteCount)) == byteCount
        }
    }
}

/// Compresses and expands pieces that each stand alone, as zstd frames. Allocates once.
// @unchecked: the contexts have one owner.
@safe public struct ZstdPieces: ~Copyable, @unchecked Sendable {
    private let squeezer: OpaquePointer
    private let expander: OpaquePointer

    public init?(level: Int32) {
        guard let squeezer = unsafe ZSTD_createCCtx() else { return nil }
        guard let expander = unsafe ZSTD_createDCtx() else {
            unsafe ZSTD_freeCCtx(squeezer)
            return nil
        }
        unsafe ZSTD_CCtx_setParameter(squeezer, ZSTD_c_compressionLevel, level)
        unsafe self.squeezer = squeezer
        unsafe self.expander = expander
    }
    deinit {
        unsafe ZSTD_freeCCtx(squeezer)
        unsafe ZSTD_freeDCtx(expander)
    }

    /// Returns the bytes written at `offset`; nil when they did not fit into `limit` bytes.
    public func squeeze(_ source: RawSpan, into target: inout PageBuffer, at offset: Int, limit: Int) -> Int? {
        precondition(offset >= 0 && limit >= 0 && limit <= target.byteCount - offset)
        return unsafe source.withUnsafeBytes { bytes in
            let size = unsafe ZSTD_compress2(squeezer, target.base + offset, limit, bytes.baseAddress, bytes.count)
            return ZSTD_isError(size) == 0 ? size : nil
        }
    }

    /// True when `source` is one frame of exactly `byteCount` bytes, now at the front of `target`.
    public func expand(_ source: RawSpan, into target: inout PageBuffer, byteCount: Int) -> Bool {
        precondition(byteCount <= target.byteCount)
        return unsafe source.withUnsafeBytes { bytes in
            let size = unsafe ZSTD_decompressDCtx(expander, target.base, byteCount, bytes.baseAddress, bytes.count)
            return ZSTD_isError(size) == 0 && size == byteCount
        }
    }
}
