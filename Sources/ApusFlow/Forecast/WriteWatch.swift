internal import ApusMemory
internal import ApusSystem

/// What a look at a running guest's writing has shown.
public struct WriteWatch: Sendable {
    public var history: WorkingSetHistory
    /// Share of a page, written twice, that had changed in between, by lines of 128 bytes; nil: no page was seen twice.
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
    /// Pages that are kept to be compared.
    private static let comparedMax = 256
    private static let lineBytes = 128

    /// Watches a guest for `seconds`. Blocks; the guest runs on, a little slower for every page that it writes anew after a
    /// part. Looks in between count only.
    public static func take(_ memory: DirectMemory, seconds: Double, linkBytesPerS: Double) throws -> WriteWatch {
        var watch = WriteWatch(history: WorkingSetHistory())
        var comparison = Comparison()
        // What was written since the tracker came belongs to no look.
        try memory.tracker.takeWritten { _, _, _ in }
        let began = Instant.now()
        for part in parts {
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
            var pages = 0.0
            var written: [Run] = []
            try memory.tracker.takeWritten { area, offset, byteCount in
                pages += Double(byteCount / UInt64(Limits.pageBytes))
                written.append(Run(area: area, offset: offset, byteCount: byteCount))
            }
            watch.add(pages: pages, since, now, began)
            comparison.look(memory, written)
            let runs = written.map { run in
                let first = memory.layout.blocks[run.area].firstPage + PageNumber(run.offset / UInt64(Limits.pageBytes))
                return (first: first, count: Int(run.byteCount / UInt64(Limits.pageBytes)))
            }
            if part == parts.last {
                watch.place = WrittenPlace(of: runs, in: try memory.layout.dataRuns(memory.windows))
                watch.written = try MemorySampler(runs, memory.reader)?.take(linkBytesPerS: linkBytesPerS)
            }
        }
        watch.changedShare = comparison.share
        return watch
    }

    private mutating func add(pages: Double, _ since: Instant, _ now: Instant, _ began: Instant) {
        history.add(.init(endMs: now.ms(since: began), spanMs: now.ms(since: since), pages: pages))
    }

    private struct Run {
        var area: Int
        var offset: UInt64
        var byteCount: UInt64
    }

    /// Some written pages as they were, to be held against what they are when they have been written again.
    private struct Comparison: ~Copyable {
        private var kept = PageBuffer(byteCount: comparedMax * Limits.pageBytes)
        private var room = PageBuffer(byteCount: Limits.pageBytes)
        private var slots: [UInt64: Int] = [:]
        private var pages = 0
        private var changedLines = 0

        var share: Double? {
            let lines = pages * (Limits.pageBytes / lineBytes)
            return pages > 0 ? Double(changedLines) / Double(lines) : nil
        }

        mutating func look(_ memory: DirectMemory, _ written: [Run]) {
            // Later ones would be as good.
            for run in written.prefix(4 * comparedMax) {
                for offset in stride(from: run.offset, to: run.offset + run.byteCount, by: Limits.pageBytes) {
                    let page = UInt64(run.area) << 52 | offset / UInt64(Limits.pageBytes)
                    let known = slots[page]
                    guard let slot = known ?? (slots.count < comparedMax ? slots.count : nil) else { continue }
                    memory.windows[run.area].copyOut(
                        at: offset, byteCount: Limits.pageBytes, to: &room, bufferOffset: 0)
                    if known != nil { compare(slot) }
                    slots[page] = slot
                    Self.keep(room, in: &kept, slot)
                }
            }
        }

        private static func keep(_ page: borrowing PageBuffer, in kept: inout PageBuffer, _ slot: Int) {
            kept.write(page.bytes, at: slot * Limits.pageBytes)
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
