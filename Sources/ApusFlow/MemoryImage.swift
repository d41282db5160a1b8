public import ApusMemory
public import ApusSystem

/// The memory of a guest that has left and that nothing changes any more. It stays as long as somebody holds this.
public final class MemoryImage: Sendable {
    private let layout: Layout
    /// One per block; nil: only its QEMU could reach it.
    private let windows: [GuestWindow?]

    init?(_ layout: Layout, _ ports: [BlockPort]) {
        self.layout = layout
        windows = ports.map(\.file)
        if windows.allSatisfy({ $0 == nil }) { return nil }
    }

    public var pageCount: PageNumber { layout.pageCount }
    /// What its pages take, holes left out.
    public func byteCount() throws(SystemError) -> UInt64 {
        try layout.dataRuns(windows).reduce(0) { $0 + UInt64($1.count * Limits.pageBytes) }
    }

    /// Calls `body` with runs of up to 64 pages, ascending; what was never written is left out.
    ///
    /// - Parameter failed: makes an error of the file's into one of the body's.
    public func forEachRun<E: Error>(
        failed: (SystemError) -> E, _ body: (_ first: PageNumber, _ count: Int, RawSpan) throws(E) -> Void
    ) throws(E) {
        var room = PageBuffer(byteCount: Limits.batchPages * Limits.pageBytes)
        let runs: [(first: PageNumber, count: Int)]
        do throws(SystemError) { runs = try layout.dataRuns(windows) } catch { throw failed(error) }
        for run in runs {
            guard let index = layout.block(of: run.first), let window = windows[index] else { continue }
            var page = run.first
            let end = run.first + PageNumber(run.count)
            while page < end {
                let count = min(Int(end - page), Limits.batchPages)
                let offset = UInt64(page - layout.blocks[index].firstPage) * UInt64(Limits.pageBytes)
                window.copyOut(at: offset, byteCount: count * Limits.pageBytes, to: &room, bufferOffset: 0)
                try body(page, count, room.bytes.extracting(0..<count * Limits.pageBytes))
                page += PageNumber(count)
            }
        }
    }
}
