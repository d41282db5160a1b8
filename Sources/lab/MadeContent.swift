import ApusMemory
import ApusSystem

/// Pages to measure with, and images of them: real data, no two pages alike.
enum MadeContent {
    static let blocksPerMiB = (1 << 20) / Limits.pageBytes

    /// Half random, half letters that squeeze to a fifth.
    static func fill(_ page: inout PageBuffer, _ number: Int) {
        var state = UInt64(number + 1) &* 0x9E37_79B9_7F4A_7C15
        for at in stride(from: 0, to: Limits.pageBytes, by: 8) {
            state ^= state << 13
            state ^= state >> 7
            state ^= state << 17
            page.store(
                at < Limits.pageBytes / 2 ? state : state & 0x0303_0000_0003_0000 | 0x6161_6161_6161_6161, at: at)
        }
    }

    /// Writes block after block, to the disk.
    ///
    /// - Parameter each: told of each block's content.
    static func write(
        blocks: Int, to path: String, each: (borrowing PageBuffer) -> Void = { _ in }
    ) throws(SystemError) -> Descriptor {
        let image = try Descriptor.create(path)
        var page = PageBuffer(byteCount: Limits.pageBytes)
        for block in 0..<blocks {
            fill(&page, block)
            each(page)
            try image.write(page.bytes, at: UInt64(block * Limits.pageBytes))
        }
        try image.sync()
        return image
    }
}
