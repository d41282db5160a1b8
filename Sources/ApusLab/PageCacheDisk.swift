internal import Foundation

/// A disk image whose content guests read into their page cache. Made once, in the cache folder; always the same bytes.
///
/// ```
///   64 KiB of text-like words | 64 KiB of the same | 64 KiB that nothing makes smaller | 64 KiB of zeros | …
/// ```
/// No two extents of text or noise are alike. What a real root disk holds is of these kinds, in proportions near these.
struct PageCacheDisk: Sendable {
    let mebibytes: Int
    let path: String

    /// - Parameter path: nil: the one in the cache folder.
    init(mebibytes: Int, path: String? = nil) {
        self.mebibytes = mebibytes
        self.path = path ?? "\(labCache())/page-cache-\(mebibytes)M.img"
    }

    private static let extentWords = 8192
    private static let vocabularyCount: UInt64 = 64

    /// Makes the image unless it exists. A reader never sees half of it.
    func make() throws {
        guard !FileManager.default.fileExists(atPath: path) else { return }
        let new = "\(path).\(ProcessInfo.processInfo.processIdentifier)"
        guard FileManager.default.createFile(atPath: new, contents: nil),
            let file = FileHandle(forWritingAtPath: new)
        else { throw LabError.notEnough(what: "room or rights to make \(new)") }
        defer { try? FileManager.default.removeItem(atPath: new) }
        for extent in 0..<mebibytes * 16 { try file.write(contentsOf: Self.content(ofExtent: extent)) }
        try file.close()
        // Somebody else may have made the same one meanwhile.
        if !FileManager.default.fileExists(atPath: path) { try FileManager.default.moveItem(atPath: new, toPath: path) }
    }

    static func content(ofExtent extent: Int) -> [UInt8] {
        var state = SplitMix.mixed(UInt64(extent) &+ 1)
        var bytes: [UInt8] = []
        bytes.reserveCapacity(extentWords * 8)
        for index in 0..<extentWords {
            state ^= state << 13
            state ^= state >> 7
            state ^= state << 17
            let word = word(ofKind: extent % 4, index, state)
            for shift in stride(from: 0, to: 64, by: 8) { bytes.append(UInt8(truncatingIfNeeded: word >> shift)) }
        }
        return bytes
    }

    private static func word(ofKind kind: Int, _ index: Int, _ random: UInt64) -> UInt64 {
        switch kind {
        // Words of eight letters, every eighth one of them rare.
        case 0, 1: return letters(index % 8 == 7 ? random : random % vocabularyCount)
        case 2: return random
        default: return 0
        }
    }

    private static func letters(_ number: UInt64) -> UInt64 {
        var random = SplitMix.mixed(number &+ 1), word: UInt64 = 0
        for _ in 0..<8 {
            word = word << 8 | (UInt64(UInt8(ascii: "a")) + random % 26)
            random /= 26
        }
        return word
    }
}
