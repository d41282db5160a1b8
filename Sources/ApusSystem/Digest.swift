internal import COpenSSL

/// SHA-256 of some bytes: proof that two hosts hold the same, where ``Checksum`` is only a hint.
public struct Digest: Sendable, Equatable {
    /// In the order of the standard, as little-endian words.
    public let words: InlineArray<4, UInt64>
    public static let byteCount = 32

    public init(words: InlineArray<4, UInt64>) { self.words = words }

    public static func of(_ bytes: RawSpan) -> Digest {
        var words = InlineArray<4, UInt64>(repeating: 0)
        var span = words.mutableSpan
        unsafe span.withUnsafeMutableBytes { target in
            unsafe bytes.withUnsafeBytes { source in
                _ = unsafe SHA256(
                    source.baseAddress?.assumingMemoryBound(to: UInt8.self), source.count,
                    target.baseAddress?.assumingMemoryBound(to: UInt8.self))
            }
        }
        return Digest(words: words)
    }

    public static func == (a: Digest, b: Digest) -> Bool {
        (a.words[0] ^ b.words[0]) | (a.words[1] ^ b.words[1]) | (a.words[2] ^ b.words[2]) | (a.words[3] ^ b.words[3])
            == 0
    }
}
