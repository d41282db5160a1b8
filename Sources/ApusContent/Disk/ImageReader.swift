internal import ApusMemory
public import ApusSystem

/// A receiver's own view of a shared image.
///
/// What it reads may be older or newer than what the sender saw, or of another image altogether: a page counts only when
/// its digest is the reference's. One reader per thread.
public struct ImageReader: ~Copyable, Sendable {
    /// So many blocks between two that are wanted are read with them: 64 KiB cost less than a second request.
    private static let gapBlocksMax: UInt64 = 15
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

    /// Reads runs of blocks in the order of the disk, and puts their pages one behind the other in the order given.
    ///
    /// - Parameter runs: at most `Limits.batchPages` pages in all.
    /// - Returns: which pages were read and proved, bit n for the nth; of a run, all or none. The others have to be asked for
    ///   as literal pages, and their places in `pages` hold nothing of meaning.
    public mutating func prove(_ runs: Span<ContentRun>, into pages: inout PageBuffer) -> UInt64 {
        let order = Self.sorted(runs)
        var proved: UInt64 = 0
        var next = 0
        while next < runs.count {
            let first = UInt64(runs[order[next].run].at)
            var end = first
            var behind = next
            while behind < runs.count {
                let run = runs[order[behind].run]
                if UInt64(run.at) > end + Self.gapBlocksMax || run.end > first + UInt64(Limits.batchPages) { break }
                end = max(end, run.end)
                behind += 1
            }
            let have = read(first, Int(end - first))
            for place in next..<behind {
                let (run, slot) = (runs[order[place].run], order[place].slot)
                let (at, byteCount) = (Int(UInt64(run.at) - first) * Limits.pageBytes, run.pages * Limits.pageBytes)
                guard at + byteCount <= have else { continue }
                let bytes = content.bytes.extracting(at..<at + byteCount)
                guard key.digest(of: bytes) == run.digest else { continue }
                pages.write(bytes, at: slot * Limits.pageBytes)
                proved |= PageSet.mask(bit: slot, count: run.pages)
            }
            next = behind
        }
        return proved
    }

    /// Bytes that could be read; what could not is refused, whatever the reason.
    private mutating func read(_ block: UInt64, _ count: Int) -> Int {
        (try? file.read(at: block * UInt64(Limits.pageBytes), into: &content, 0..<count * Limits.pageBytes)) ?? 0
    }

    /// A run by its index, and where its first page goes.
    private struct Place {
        var run = 0
        var slot = 0
    }

    /// Ascending by block: insertion sort, because most batches are nearly in order.
    private static func sorted(_ runs: Span<ContentRun>) -> InlineArray<64, Place> {
        var order = InlineArray<64, Place>(repeating: Place())
        var slot = 0
        for index in runs.indices {
            var place = index
            while place > 0, runs[order[place - 1].run].at > runs[index].at {
                order[place] = order[place - 1]
                place -= 1
            }
            order[place] = Place(run: index, slot: slot)
            slot += runs[index].pages
        }
        return order
    }
}
