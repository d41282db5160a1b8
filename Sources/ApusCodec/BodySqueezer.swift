internal import ApusMemory
internal import ApusSystem

/// Squeezes the bodies of one kind of frame. The zstd stream runs through all of them, so a body may refer to earlier
/// ones.
struct BodySqueezer: ~Copyable, Sendable {
    struct Squeezed {
        var codec: Codec
        var byteCount: Int
        /// The zstd stream starts anew with this body.
        var restarted: Bool
    }

    private var zstd: ZstdSqueezer?
    private var zstdLevel: Int32 = 0

    /// Squeezes `source` into `target` at `offset`; nil when the codec does not make it smaller: it then travels raw.
    ///
    /// Nothing is allocated after the first call for each codec and level.
    mutating func squeeze(
        _ source: RawSpan, _ choice: CodecChoice, into target: inout PageBuffer, at offset: Int
    ) -> Squeezed? {
        guard source.byteCount > 0 else { return nil }
        switch choice {
        case .raw:
            return nil
        case .lz4:
            // Worth it only below 7/8 of the raw size: below that the receiver's work costs more than the link.
            guard let bytes = LZ4.squeeze(source, into: &target, at: offset, limit: source.byteCount * 7 / 8) else {
                return nil
            }
            return Squeezed(codec: .lz4, byteCount: bytes, restarted: false)
        case .zstd(let level):
            var restarted = false
            if zstd == nil || level != zstdLevel {
                // The level of a running stream is fixed; another level is another stream.
                zstd = ZstdSqueezer(level: level)
                zstdLevel = level
                restarted = true
            }
            guard let bytes = zstd?.squeeze(source, into: &target, at: offset), bytes < source.byteCount * 31 / 32
            else {
                // The receiver must not miss a part of the stream: start anew next time.
                zstd = nil
                return nil
            }
            return Squeezed(codec: .zstd, byteCount: bytes, restarted: restarted)
        }
    }

    /// The receiver may have missed a part of the stream.
    mutating func restart() { zstd = nil }
}

/// Expands what ``BodySqueezer`` made, in the same order.
struct BodyExpander: ~Copyable, Sendable {
    private var zstd: ZstdExpander?

    /// Fills the front of `target` with exactly `byteCount` bytes.
    mutating func expand(
        _ body: RawSpan, _ codec: Codec, into target: inout PageBuffer, byteCount: Int, restart: Bool
    ) throws(PayloadError) {
        switch codec {
        case .none:
            guard byteCount == 0, body.byteCount == 0 else { throw .corruptBody(.none) }
        case .lz4:
            guard LZ4.expand(body, into: &target, byteCount: byteCount) else { throw .corruptBody(.lz4) }
        case .zstd:
            if restart || zstd == nil { zstd = ZstdExpander() }
            guard zstd?.expand(body, into: &target, byteCount: byteCount) == true else { throw .corruptBody(.zstd) }
        }
    }
}
