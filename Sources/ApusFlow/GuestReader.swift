internal import ApusMemory
internal import ApusSystem

/// Guest RAM as an agent can read it past QEMU, by page number.
struct GuestReader: Sendable {
    let layout: Layout
    private let ports: [BlockPort]
    /// Pages that can be read: all but those of blocks that only QEMU can reach.
    let readable: PageRanges

    init(_ layout: Layout, _ ports: [BlockPort]) {
        precondition(layout.blocks.count == ports.count)
        self.layout = layout
        self.ports = ports
        var readable = PageRanges()
        for (block, port) in zip(layout.blocks, ports) where block.pageCount > 0 {
            if case .stream = port { continue }
            readable.append(block.firstPage..<block.firstPage + block.pageCount)
        }
        self.readable = readable
    }

    /// What can be kept of it when its QEMU has ended; nil: nothing.
    var image: MemoryImage? { MemoryImage(layout, ports) }

    /// The readable pages that it may have, ascending: what the files have; of memory in no file, all.
    func dataRuns() throws(SystemError) -> [(first: PageNumber, count: Int)] {
        var all = try layout.dataRuns(ports.map(\.window))
        for (block, port) in zip(layout.blocks, ports) where port.isReadable && port.window == nil {
            if block.pageCount > 0 { all.append((block.firstPage, Int(block.pageCount))) }
        }
        return all.sorted { $0.first < $1.first }
    }

    /// Copies a run of pages of one block to `offset` of `buffer`. A hole reads as zeros and stays a hole.
    func read(
        first: PageNumber, count: Int, into buffer: inout PageBuffer, at offset: Int
    ) throws(SystemError) {
        guard let index = layout.block(of: first) else { preconditionFailure("the caller knows the layout") }
        let from = UInt64(first - layout.blocks[index].firstPage) * UInt64(Limits.pageBytes)
        let byteCount = count * Limits.pageBytes
        switch ports[index] {
        case .mapped(let window):
            try window.read(at: from, byteCount: byteCount, to: &buffer, bufferOffset: offset)
        case .process(let window):
            try window.copyOut(at: from, byteCount: byteCount, to: &buffer, bufferOffset: offset)
        case .stream:
            preconditionFailure("the caller asks for readable pages only")
        }
    }

    /// The digest of a run of pages of one block; nil: all zero.
    ///
    /// - Parameter room: at least as long as the run.
    func digest(first: PageNumber, count: Int, _ room: inout PageBuffer) throws(SystemError) -> Digest? {
        try read(first: first, count: count, into: &room, at: 0)
        let bytes = room.bytes.extracting(0..<count * Limits.pageBytes)
        return bytes.isAllZero ? nil : Digest.of(bytes)
    }

    /// The readable pages of one lane that are in `others` too, as runs within one stripe and one block.
    func runs(of share: LaneShare, in others: PageRanges) -> [(first: PageNumber, count: Int)] {
        var runs: [(PageNumber, Int)] = []
        for block in layout.blocks where block.pageCount > 0 && readable.contains(block.firstPage) {
            guard others.contains(block.firstPage) else { continue }
            var page = block.firstPage
            let end = block.firstPage + block.pageCount
            while page < end {
                let count = min(end, (page | 63) + 1) - page
                if share.owns(page) { runs.append((page, Int(count))) }
                page += count
            }
        }
        return runs
    }
}
