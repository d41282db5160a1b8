internal import CXXHash

/// Keyed hashes of the lines of a page: XXH3, 64 bits, with a secret that is drawn anew for every hasher, so that nobody
/// who writes the pages can choose lines that share a hash.
///
/// Lines of 128 bytes take XXH3's path for short input, the fastest per byte (see `./dev bench lines`).
public struct LineHasher: ~Copyable, Sendable {
    public static let hashBytes = 8
    /// XXH3's own default length.
    private static let secretBytes = 192

    public let lineBytes: Int
    private var secret = PageBuffer(byteCount: LineHasher.secretBytes)

    public init(lineBytes: Int) {
        precondition(lineBytes >= 64)
        self.lineBytes = lineBytes
        var source = SystemRandomNumberGenerator()
        for at in stride(from: 0, to: Self.secretBytes, by: 8) { secret.store(source.next(), at: at) }
    }

    /// Replaces the hashes at `offset` by those of the page's lines.
    /// - Returns: which lines' hashes were others, the first line as the lowest bit.
    public func renew(_ hashes: inout GrowingMemory, at offset: Int, with page: RawSpan) -> UInt32 {
        let lines = page.byteCount / lineBytes
        precondition(lines <= UInt32.bitWidth && offset >= 0 && offset <= hashes.byteCount - lines * Self.hashBytes)
        var changed: UInt32 = 0
        var table = hashes.mutableBytes
        // SAFETY: both pointers stay within what the precondition and the span's own length cover.
        unsafe table.withUnsafeMutableBytes { table in
            unsafe page.withUnsafeBytes { page in
                guard let from = page.baseAddress, let to = table.baseAddress else { return }
                for line in 0..<lines {
                    let hash = unsafe XXH3_64bits_withSecret(
                        from + line * lineBytes, lineBytes, secret.base, Self.secretBytes)
                    let place = unsafe to + offset + line * Self.hashBytes
                    if unsafe place.load(as: UInt64.self) != hash {
                        changed |= 1 << UInt32(line)
                        unsafe place.storeBytes(of: hash, as: UInt64.self)
                    }
                }
            }
        }
        return changed
    }
}
