internal import ApusMemory
internal import ApusSystem

/// What a look at a running guest's writing has shown.
public struct WriteWatch: Sendable {
    public var history: WorkingSetHistory
    /// Share of a page, written in the last part, that has changed by that, in lines of 128 bytes; nil: not known.
    public var changedShare: Double?

    /// The pages that it wrote, as they are; nil: none.
    public var written: MemorySample?
    /// Where they lie among the guest's data; nil: none.
    public var place: WrittenPlace?

    /// Shares of the time after which what was written is protected again: what is written twice is seen only so.
    public static let parts = [0.15, 0.15, 0.7]
    /// Looks in between: the first of them, and the growth from each to the next.
    static let firstLookMs = 25.0
    static let lookGrowth = 1.6
    private static let lineBytes = 128
    /// Fewer pages from anywhere tell less than those that had been written.
    private static let comparedMin = 32

    /// Watches a guest for `seconds`. Blocks; the guest runs on, a little slower for every page that it writes anew after a
    /// part. Looks in between count only.
    public static func take(_ memory: DirectMemory, seconds: Double, linkBytesPerS: Double) throws -> WriteWatch {
        var watch = WriteWatch(history: WorkingSetHistory())
        // Of a guest that writes much, pages from anywhere tell what it writes. Of one that writes little hardly any of these is
        // written, so some that it had written are kept, too.
        var anywhere = Comparison()
        var written = Comparison()
        // What was written since the tracker came belongs to no look.
        try memory.tracker.takeWritten { _, _, _ in }
        let began = Instant.now()
        for part in parts {
            let isLast = part == parts.last
            let data = isLast ? try memory.layout.dataRuns(memory.windows) : []
            if isLast { try anywhere.keep(data, memory.reader) }
            let since = Instant.now()
            let partMs = part * seconds * 1000
            var lookMs = firstLookMs
            while lookMs * lookGrowth < partMs {
                pause(ms: max(0, lookMs - Instant.now().ms(since: since)))
                let now = Instant.now()
                watch.add(
                    pages: Double(try memory.tracker.writtenBytes()) / Double(Limits.pageBytes), since, now, began)
                lookMs = max(lookMs * lookGrowth, Instant.now().ms(since: since))
            }
            pause(ms: max(0, partMs - Instant.now().ms(since: since)))
            let now = Instant.now()
            var runs: [PageRun] = []
            try memory.tracker.takeWritten { area, offset, byteCount in
                let first = memory.layout.blocks[area].firstPage + PageNumber(offset / UInt64(Limits.pageBytes))
                runs.append((first, Int(byteCount / UInt64(Limits.pageBytes))))
            }
            watch.add(pages: Double(runs.reduce(0) { $0 + $1.count }), since, now, began)
            guard isLast else {
                try written.keep(runs, memory.reader)
                continue
            }
            try anywhere.compare(runs, memory.reader)
            try written.compare(runs, memory.reader)
            watch.changedShare = anywhere.pages >= comparedMin ? anywhere.share : written.share ?? anywhere.share
            watch.place = WrittenPlace(of: runs, in: data)
            watch.written = try MemorySampler(runs, memory.reader)?.take(linkBytesPerS: linkBytesPerS)
        }
        return watch
    }

    private typealias PageRun = (first: PageNumber, count: Int)

    private mutating func add(pages: Double, _ since: Instant, _ now: Instant, _ began: Instant) {
        history.add(.init(endMs: now.ms(since: began), spanMs: now.ms(since: since), pages: pages))
    }

    /// Some pages as they were, to be held against what they are when they have been written.
    private struct Comparison: ~Copyable {
        private static let pagesMax = 1024
        private var kept = PageBuffer(byteCount: pagesMax * Limits.pageBytes)
        private var room = PageBuffer(byteCount: Limits.pageBytes)
        private var slots: [PageNumber: Int] = [:]
        private(set) var pages = 0
        private var changedLines = 0

        /// Of those that were compared; nil: none was.
        var share: Double? {
            let lines = pages * (Limits.pageBytes / lineBytes)
            return pages > 0 ? Double(changedLines) / Double(lines) : nil
        }

        /// Some of these, in the place of all that were kept.
        mutating func keep(_ runs: [PageRun], _ reader: GuestReader) throws(SystemError) {
            slots = [:]
            for (slot, page) in WrittenSample.spread(runs, pagesMax: Self.pagesMax).enumerated() {
                try reader.read(first: page, count: 1, into: &kept, at: slot * Limits.pageBytes)
                slots[page] = slot
            }
        }

        /// - Parameter runs: written since.
        mutating func compare(_ runs: [PageRun], _ reader: GuestReader) throws(SystemError) {
            for run in runs {
                for page in run.first..<run.first + PageNumber(run.count) {
                    guard let slot = slots[page] else { continue }
                    try reader.read(first: page, count: 1, into: &room, at: 0)
                    compare(slot)
                }
            }
        }

        private mutating func compare(_ slot: Int) {
            pages += 1
            var changed = 0
            for line in 0..<Limits.pageBytes / lineBytes {
                let old = slot * Limits.pageBytes + line * lineBytes
                let new = room.bytes.extracting(line * lineBytes..<(line + 1) * lineBytes)
                if !kept.bytes.extracting(old..<old + lineBytes).equals(new) { changed += 1 }
            }
            changedLines += changed
        }
    }
}
