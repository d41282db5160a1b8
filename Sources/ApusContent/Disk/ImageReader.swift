public import ApusMemory
public import ApusSystem

/// A page expressed as a block of a disk image: whoever has the image reads it, and proves it by the digest.
public struct BlockReference: Sendable, Equatable {
    public let page: PageNumber
    /// Offset in the image / 4096.
    public let block: UInt32
    public let digest: Digest

    public init(page: PageNumber, block: UInt32, digest: Digest) {
        self.page = page
        self.block = block
        self.digest = digest
    }
}

/// A receiver's own view of a shared image.
///
/// What it reads may be older or newer than what the sender saw, or of another image altogether: a page counts only when
/// its digest is the reference's. One reader per thread.
public struct ImageReader: ~Copyable, Sendable {
    /// Blocks no further apart are read at once: 64 KiB cost less than a second request.
    private static let gapBlocksMax: UInt32 = 15
    private var file: Descriptor
    private let key: ContentKey
    private var content = PageBuffer(byteCount: Limits.batchPages * Limits.pageBytes)

    public init(_ file: Descriptor, _ key: ContentKey) {
        self.file = file
        self.key = key
    }

    /// Reads from another image from now on.
    public mutating func turn(to image: Descriptor) { file = image }

    /// Opens an image to read from.
    public static func openImage(_ path: String) throws(IndexError) -> Descriptor {
        let file: Descriptor
        let kind: FileKind
        do throws(SystemError) {
            file = try Descriptor.openContent(path)
            kind = try file.kind()
        } catch { throw .image(path: path, error) }
        guard kind != .other else { throw .notAFile(path: path) }
        file.expectNoOrder()
        return file
    }

    /// Reads a batch of blocks in the order of the disk; page n of `pages` is that of reference n.
    ///
    /// - Parameter references: at most `Limits.batchPages`.
    /// - Returns: which were read and proved, bit n for reference n. The others have to be asked for as literal pages,
    ///   and their places in `pages` hold nothing of meaning.
    public mutating func prove(_ references: Span<BlockReference>, into pages: inout PageBuffer) -> UInt64 {
        precondition(references.count <= Limits.batchPages && references.count * Limits.pageBytes <= pages.byteCount)
        let order = Self.sorted(references)
        var proved: UInt64 = 0
        var next = 0
        while next < references.count {
            let first = UInt32(order[next] >> 8)
            var lastBlock = first
            var end = next + 1
            while end < references.count {
                let block = UInt32(order[end] >> 8)
                if block - lastBlock > Self.gapBlocksMax || block - first >= UInt32(Limits.batchPages) { break }
                lastBlock = block
                end += 1
            }
            let have = read(first, Int(lastBlock - first) + 1)
            for place in next..<end {
                let index = Int(order[place] & 0xff)
                let at = Int(UInt32(order[place] >> 8) - first) * Limits.pageBytes
                guard at + Limits.pageBytes <= have else { continue }
                let bytes = content.bytes.extracting(at..<at + Limits.pageBytes)
                guard key.digest(of: bytes) == references[index].digest else { continue }
                pages.write(bytes, at: index * Limits.pageBytes)
                proved |= 1 << UInt64(index)
            }
            next = end
        }
        return proved
    }

    /// Bytes that could be read; what could not is refused, whatever the reason.
    private mutating func read(_ block: UInt32, _ count: Int) -> Int {
        let at = UInt64(block) * UInt64(Limits.pageBytes)
        return (try? file.read(at: at, into: &content, 0..<count * Limits.pageBytes)) ?? 0
    }

    /// Block and place of each reference, `block << 8 | place`, ascending: insertion sort, because most batches are nearly
    /// in order.
    private static func sorted(_ references: Span<BlockReference>) -> InlineArray<64, UInt64> {
        var order = InlineArray<64, UInt64>(repeating: .max)
        for index in 0..<references.count {
            let key = UInt64(references[index].block) << 8 | UInt64(index)
            var place = index
            while place > 0, order[place - 1] > key {
                order[place] = order[place - 1]
                place -= 1
            }
            order[place] = key
        }
        return order
    }
}
