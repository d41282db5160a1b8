internal import ApusMemory
internal import ApusSystem

/// What a look at a running guest's writing has shown.
public struct WriteWatch: Sendable {
    public var history: WorkingSetHistory
    /// Share of a page, written twice, that had changed in between, by lines of 128 bytes; nil: no page was seen twice.
    public var changedShare: Double?

    /// Lengths of the looks, from long to short and back: what a guest writes in 1 s says little of 50 ms.
    public static let spansMs: [Double] = [50, 100, 200, 400, 800, 400, 200, 100, 50]
    /// Pages that are kept to be compared.
    private static let comparedMax = 256
    private static let lineBytes = 128

    /// Watches a guest for `seconds`, in looks of several lengths. Blocks; the guest runs on, a little slower for every
    /// page that it writes anew after a look.
    public static func take(_ memory: DirectMemory, seconds: Double) throws -> WriteWatch {
        let usualMs = spansMs.reduce(0, +)
        var watch = WriteWatch(history: WorkingSetHistory(), changedShare: nil)
        var comparison = Comparison()
        // What was written since the tracker came belongs to no look.
        try memory.tracker.takeWritten { _, _, _ in }
        let began = Instant.now()
        var last = began
        for spanMs in spansMs {
            pause(ms: max(0, spanMs * seconds * 1000 / usualMs - Instant.now().ms(since: last)))
            let now = Instant.now()
            var pages = 0.0
            var written: [Run] = []
            try memory.tracker.takeWritten { area, offset, byteCount in
                pages += Double(byteCount / UInt64(Limits.pageBytes))
                if written.count < comparedMax * 4 {
                    written.append(Run(area: area, offset: offset, byteCount: byteCount))
                }
            }
            watch.history.add(.init(endMs: now.ms(since: began), spanMs: now.ms(since: last), pages: pages))
            last = now
            comparison.look(memory, written)
        }
        watch.changedShare = comparison.share
        return watch
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
            for run in written {
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
