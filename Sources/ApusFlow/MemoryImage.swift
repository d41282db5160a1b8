public import ApusMemory
public import ApusSystem

/// The memory of a guest that has left and that nothing changes any more. It stays as long as somebody holds this.
public final class MemoryImage: Sendable {
    private let layout: Layout
    /// One per block; nil: only its QEMU could reach it.
    private let windows: [GuestWindow?]

    init?(_ layout: Layout, _ ports: [BlockPort]) {
        self.layout = layout
        windows = ports.map { if case .mapped(let window) = $0 { window } else { nil } }
        if windows.allSatisfy({ $0 == nil }) { return nil }
    }

    public var pageCount: PageNumber { layout.pageCount }
    /// What its pages take, holes left out.
    public func byteCount() throws(SystemError) -> UInt64 {
        var sum: UInt64 = 0
        for window in windows { for range in try window?.dataRanges() ?? [] { sum += UInt64(range.count) } }
        return sum
    }

    /// Calls `body` with runs of up to 64 pages, ascending; what was never written is left out.
    ///
    /// - Parameter failed: makes an error of the file's into one of the body's.
    public func forEachRun<E: Error>(
        failed: (SystemError) -> E, _ body: (_ first: PageNumber, _ count: Int, RawSpan) throws(E) -> Void
    ) throws(E) {
        var room = PageBuffer(byteCount: Limits.batchPages * Limits.pageBytes)
        for (block, window) in zip(layout.blocks, windows) {
            guard let window else { continue }
            let ranges: [Range<UInt64>]
            do throws(SystemError) { ranges = try window.dataRanges() } catch { throw failed(error) }
            let pageBytes = UInt64(Limits.pageBytes)
            for range in ranges {
                var page = range.lowerBound / pageBytes
                let end = min((range.upperBound + pageBytes - 1) / pageBytes, UInt64(block.pageCount))
                while page < end {
                    let count = Int(min(end - page, UInt64(Limits.batchPages)))
                    window.copyOut(
                        at: page * pageBytes, byteCount: count * Limits.pageBytes, to: &room, bufferOffset: 0)
                    try body(
                        block.firstPage + PageNumber(page), count, room.bytes.extracting(0..<count * Limits.pageBytes))
                    page += UInt64(count)
                }
            }
        }
    }
}
