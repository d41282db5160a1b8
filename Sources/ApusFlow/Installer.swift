internal import ApusCodec
internal import ApusMemory
public import ApusSystem
internal import ApusWire

/// How an agent reaches one RAM block of the QEMU it fills.
public enum BlockPort: Sendable {
    /// A shared file that the agent has mapped as well.
    case mapped(GuestWindow)
    /// Private memory of the QEMU process.
    case process(ProcessWindow)
    /// Only QEMU knows where it is: pages go in as records of the stream.
    case stream

    /// nil: it is in no file of ours.
    var file: GuestWindow? { if case .mapped(let window) = self { window } else { nil } }

    /// A part of a page can be changed, not only whole pages.
    var takesPatches: Bool {
        switch self {
        case .mapped, .process: true
        case .stream: false
        }
    }

    /// For reports: `mapped`, `process`, `stream`.
    public var name: String {
        switch self {
        case .mapped: "mapped"
        case .process: "process"
        case .stream: "stream"
        }
    }
}

/// Puts the pages of one lane where they belong. One per lane; lanes never touch the same page.
struct RAMInstaller: ~Copyable, PageInstaller {
    private let layout: Layout
    private let ports: [BlockPort]
    private let feed: QemuFeed
    private let ramSection: UInt32
    let patchable: PageRanges
    /// Pages that are read elsewhere; whatever is installed here is newer.
    var awaited: AwaitedPages
    /// Pages that may hold something else than zeros.
    private var written: PageSet
    private var writer: QemuStreamWriter
    private var records = StreamBuffer()
    private var scratch = PageBuffer(byteCount: Limits.batchPages * Limits.pageBytes)

    /// - Parameter written: see ``pagesWithData(_:)``.
    init(_ prologue: DestinationState.Prologue, _ feed: QemuFeed, written: PageSet) {
        layout = prologue.layout
        ports = prologue.ports
        ramSection = prologue.ramSection
        patchable = prologue.patchable
        writer = QemuStreamWriter(table: prologue.table)
        self.feed = feed
        self.written = written
        awaited = AwaitedPages(pageCount: prologue.layout.pageCount)
    }

    /// A new QEMU's RAM is empty; what its firmware has put there all the same must not survive a zero page.
    static func pagesWithData(_ prologue: DestinationState.Prologue) throws(SystemError) -> PageSet {
        var pages = PageSet(pageCount: prologue.layout.pageCount)
        for run in try prologue.layout.dataRuns(prologue.ports.map(\.file)) {
            pages.insert(first: run.first, count: run.count)
        }
        return pages
    }

    mutating func install(first: PageNumber, _ bytes: RawSpan) throws(PayloadError) {
        let (index, offset) = place(first)
        let count = bytes.byteCount / Limits.pageBytes
        awaited.supersede(first: first, count: count)
        do throws(SystemError) {
            switch ports[index] {
            case .mapped(let window):
                try installMapped(window, first, offset, bytes)
                written.insert(first: first, count: count)
            case .process(let window):
                try window.install(bytes, at: offset)
            case .stream:
                try writePart(index, offset, bytes, count)
            }
        } catch { throw .install("block \(layout.blocks[index].name): \(error)") }
    }

    mutating func installZero(first: PageNumber, count: Int) throws(PayloadError) {
        let (index, offset) = place(first)
        awaited.supersede(first: first, count: count)
        do throws(SystemError) {
            switch ports[index] {
            case .mapped(let window):
                try eachWritten(first, count) { at, bytes in
                    window.zero(at: offset + at, byteCount: bytes)
                }
            case .process(let window):
                try window.zero(at: offset, byteCount: count * Limits.pageBytes, scratch: &scratch)
            case .stream:
                try writePart(index, offset, nil, count)
            }
        } catch { throw .install("block \(layout.blocks[index].name): \(error)") }
    }

    mutating func patch(
        _ page: PageNumber, mask: UInt32, lineBytes: Int, _ bytes: RawSpan
    ) throws(PayloadError) {
        let (index, offset) = place(page)
        awaited.supersede(first: page, count: 1)
        switch ports[index] {
        case .mapped(let window):
            window.patch(bytes, at: offset, mask, lineBytes: lineBytes)
            written.insert(first: page, count: 1)
        case .process(let window):
            do throws(SystemError) {
                try window.patch(bytes, at: offset, mask, lineBytes: lineBytes)
            } catch { throw .install("block \(layout.blocks[index].name): \(error)") }
        case .stream:
            preconditionFailure("the decoder checked that the page can be patched")
        }
    }

    private func place(_ page: PageNumber) -> (block: Int, offset: UInt64) {
        guard let index = layout.block(of: page) else { preconditionFailure("the decoder checked the page") }
        return (index, UInt64(page - layout.blocks[index].firstPage) * UInt64(Limits.pageBytes))
    }

    /// Pages that were never written are made by the file system in the copy; others are overwritten in place.
    private func installMapped(
        _ window: GuestWindow, _ first: PageNumber, _ offset: UInt64, _ bytes: RawSpan
    ) throws(SystemError) {
        let count = bytes.byteCount / Limits.pageBytes
        var done = 0
        while done < count {
            let run = written.uniformRun(from: first + PageNumber(done), count: count - done)
            let from = done * Limits.pageBytes
            let part = bytes.extracting(from..<from + run.count * Limits.pageBytes)
            if run.inSet {
                window.install(part, at: offset + UInt64(from))
            } else {
                try window.installFresh(part, at: offset + UInt64(from))
            }
            done += run.count
        }
    }

    /// Calls `body` with byte offset (from `first`) and length of each run of pages that were written before.
    private func eachWritten(
        _ first: PageNumber, _ count: Int, _ body: (UInt64, Int) throws(SystemError) -> Void
    ) throws(SystemError) {
        var done = 0
        while done < count {
            let run = written.uniformRun(from: first + PageNumber(done), count: count - done)
            if run.inSet { try body(UInt64(done * Limits.pageBytes), run.count * Limits.pageBytes) }
            done += run.count
        }
    }

    /// One whole PART section; `bytes` nil: pages of zeros.
    private mutating func writePart(
        _ block: Int, _ offset: UInt64, _ bytes: RawSpan?, _ count: Int
    ) throws(SystemError) {
        records.removeAll()
        writer.sectionPart(id: ramSection, to: &records)
        // Other lanes write parts in between, so every part names its block anew.
        writer.forgetBlock()
        for page in 0..<count {
            let at = offset + UInt64(page * Limits.pageBytes)
            if let bytes {
                let from = page * Limits.pageBytes
                writer.page(block: block, offset: at, to: &records)
                records.append(bytes.extracting(from..<from + Limits.pageBytes))
            } else {
                writer.zero(block: block, offset: at, to: &records)
            }
        }
        writer.endOfRecords(to: &records)
        writer.footer(id: ramSection, to: &records)
        try feed.write(records.bytes)
    }
}
