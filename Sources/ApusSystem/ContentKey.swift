internal import COpenSSL
internal import CXXHash

/// What pages are called inside one trust domain: a keyed SHA-256 as proof, a keyed XXH3 as a hint of where to look.
///
/// ```
///   secret + domain -- SHA-256 --> key --> digest(page)  = SHA-256(key | "page" | page)               proof
///                                    |---> digest(pages) = SHA-256(key | "run" | u64 bytes | pages)   one proof of all
///                                    `---> hint(page)    = XXH3-64(secret', page)    where to look, never a proof
/// ```
///
/// Content of two domains never matches, because no two pages of theirs share a name; an operator joins tenants by
/// giving them one domain. What stands before the pages tells how long the message is, so none is the beginning of
/// another: nobody can lengthen a digest, and a prefix is as good a key as HMAC's two.
public final class ContentKey: Sendable {
    public static let secretBytes = 32
    /// XXH3's own default length.
    private static let hintSecretBytes = 192
    private static let labelBytes = 32
    private static let pageBytes = 4096

    /// SHA-256 after its first block, which is the key and a label.
    private let begunPage: SHA256_CTX
    private let begunRun: SHA256_CTX
    private let hintSecret: PageBuffer
    /// Tells keys apart without telling the key: what was written under another one is useless.
    public let fingerprint: UInt64

    /// - Parameters:
    ///   - secret: 32 bytes that only the agents know.
    ///   - domain: the tenant, or the tenants that the operator joins.
    public init(secret: [UInt8], domain: String) {
        precondition(secret.count == Self.secretBytes)
        let key = Self.sha256(secret + Array(domain.utf8))
        begunPage = Self.begin(key + Self.label("page"))
        begunRun = Self.begin(key + Self.label("run"))
        var hints = PageBuffer(byteCount: Self.hintSecretBytes)
        for part in 0..<Self.hintSecretBytes / Digest.byteCount {
            hints.write(Self.sha256(key + Self.label("hint \(part)")).rawBytes, at: part * Digest.byteCount)
        }
        hintSecret = hints
        fingerprint = Self.sha256(key + Self.label("fingerprint")).rawBytes.littleEndian(at: 0)
    }

    /// The proof that pages are the same, one or many in their order; some 2 µs a page with the CPU's SHA instructions.
    public func digest(of pages: RawSpan) -> Digest {
        var context = pages.byteCount == Self.pageBytes ? begunPage : beginRun(byteCount: pages.byteCount)
        var words = InlineArray<4, UInt64>(repeating: 0)
        var span = words.mutableSpan
        // SAFETY: SHA256_Final writes 32 bytes, which is what four words hold.
        unsafe span.withUnsafeMutableBytes { target in
            unsafe pages.withUnsafeBytes { _ = unsafe SHA256_Update(&context, $0.baseAddress, $0.count) }
            _ = unsafe SHA256_Final(target.baseAddress?.assumingMemoryBound(to: UInt8.self), &context)
        }
        return Digest(words: words)
    }

    /// Where to look for a page; never 0, which tables keep for pages of zeros.
    public func hint(of page: RawSpan) -> UInt64 {
        // SAFETY: the secret has the length that is said.
        let hint = unsafe page.withUnsafeBytes {
            unsafe XXH3_64bits_withSecret($0.baseAddress, $0.count, hintSecret.base, Self.hintSecretBytes)
        }
        return hint == 0 ? 1 : hint
    }

    private func beginRun(byteCount: Int) -> SHA256_CTX {
        var context = begunRun
        var length = UInt64(byteCount).littleEndian
        // SAFETY: OpenSSL reads the eight bytes of the word.
        unsafe SHA256_Update(&context, &length, 8)
        return context
    }

    private static func begin(_ block: [UInt8]) -> SHA256_CTX {
        var context = SHA256_CTX()
        // SAFETY: OpenSSL reads as many bytes as the array has.
        unsafe SHA256_Init(&context)
        unsafe block.withUnsafeBytes { _ = unsafe SHA256_Update(&context, $0.baseAddress, $0.count) }
        return context
    }

    private static func sha256(_ bytes: [UInt8]) -> [UInt8] {
        let digest = Digest.of(bytes.rawBytes)
        return (0..<4).flatMap { word in
            (0..<8).map { UInt8(truncatingIfNeeded: digest.words[word] >> UInt64($0 * 8)) }
        }
    }

    private static func label(_ text: String) -> [UInt8] {
        let name = Array("apus \(text)".utf8.prefix(labelBytes))
        return name + Array(repeating: 0, count: labelBytes - name.count)
    }
}

extension Digest {
    /// Reads a digest as ``write(to:at:)`` left it.
    public init(from bytes: RawSpan, at offset: Int) {
        var words = InlineArray<4, UInt64>(repeating: 0)
        for word in 0..<4 { words[word] = bytes.littleEndian(at: offset + word * 8) }
        self.init(words: words)
    }

    public func write(to buffer: inout PageBuffer, at offset: Int) {
        for word in 0..<4 { buffer.store(words[word], at: offset + word * 8) }
    }
}
