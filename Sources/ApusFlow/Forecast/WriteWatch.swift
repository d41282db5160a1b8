internal import ApusMemory
internal import ApusSystem

/// Pages that a guest wrote, and what they are like when they travel again.
public struct WrittenPages: Sendable, Equatable {
    public var pages: Int
    /// Wire bytes of one of them, whole.
    public var wholeBytesPerPage: Double
    /// Share of their lines that had changed; nil: too few were seen.
    public var changedShare: Double?
}

/// What a look at a running guest's writing has shown.
public struct WriteWatch: Sendable {
    public var history: WorkingSetHistory
    /// What it writes all the time, and the others; nil: nothing.
    public var hot: WrittenPages?
    public var fresh: WrittenPages?
    /// Where what it writes lies among its data; nil: it writes nothing.
    public var place: WrittenPlace?

    /// Shares of the time after which what was written is protected again: what is written twice is seen only so.
    ///
    /// ```
    ///   part   0    1    2        3        4
    ///          |----|----|--------|--------|-------------------------------|
    ///          hot: in 0 and 1; fresh: not hot        lines after 3 | against those after 4
    /// ```
    /// Within two parts of 100 ms hardly a page is written two times that is not written all the time. What has changed
    /// of a hot page in a long part is what the last rounds send: the hottest of them are held back until then.
    public static let parts = [0.05, 0.05, 0.15, 0.15, 0.6]
    private static let hotParts = 2
    /// Looks in between: the first of them, and the growth from each to the next.
    static let firstLookMs = 25.0
    static let lookGrowth = 1.6

    /// Watches a guest for `seconds`. Blocks; the guest runs on, a little slower for every page that it writes anew after a
    /// part. Looks in between count only.
    public static func take(_ memory: DirectMemory, seconds: Double, linkBytesPerS: Double) throws -> WriteWatch {
        var watch = WriteWatch(history: WorkingSetHistory())
        var hot = PageSet(pageCount: memory.layout.pageCount)
        var hotLines = LineSums()
        // Where the others will be is not known.
        var anyLines = LineSums()
        var data: [PageRun] = []
        let began = Instant.now()
        // What was written since the tracker came belongs to no look.
        var since = Instant.now()
        try memory.tracker.takeWritten { _, _, _ in }
        for (number, part) in parts.enumerated() {
            let isLast = number == parts.count - 1
            if isLast {
                data = try memory.layout.dataRuns(memory.windows)
                try hotLines.keep(hot.runs, memory.reader)
                try anyLines.keep(data, memory.reader)
            }
            try watch.look(memory, since, forMs: part * seconds * 1000, began)
            let now = Instant.now()
            let runs = try takeWritten(memory)
            watch.add(pages: Double(runs.reduce(0) { $0 + $1.count }), since, now, began)
            since = now
            var written = PageSet(pageCount: memory.layout.pageCount)
            for run in runs { written.insert(first: run.first, count: run.count) }
            if number == 0 { hot = written }
            if number < hotParts { hot.formIntersection(written) }
            guard isLast else { continue }
            watch.place = WrittenPlace(of: runs, in: data)
            hot.formIntersection(written)
            written.subtract(hot)
            let hotShare = try hotLines.changedShare(hot.runs, memory.reader)
            let share = try anyLines.changedShare(written.runs, memory.reader)
            watch.hot = try .sample(hot, changedShare: hotShare, memory.reader, linkBytesPerS: linkBytesPerS)
            watch.fresh = try .sample(
                written, changedShare: share ?? hotShare, memory.reader, linkBytesPerS: linkBytesPerS)
        }
        return watch
    }

    fileprivate typealias PageRun = (first: PageNumber, count: Int)

    /// Looks, but for the last, until it is time.
    private mutating func look(_ memory: DirectMemory, _ since: Instant, forMs: Double, _ began: Instant) throws {
        var lookMs = Self.firstLookMs
        while lookMs * Self.lookGrowth < forMs {
            pause(ms: max(0, lookMs - Instant.now().ms(since: since)))
            let now = Instant.now()
            add(pages: Double(try memory.tracker.writtenBytes()) / Double(Limits.pageBytes), since, now, began)
            lookMs = max(lookMs * Self.lookGrowth, Instant.now().ms(since: since))
        }
        pause(ms: max(0, forMs - Instant.now().ms(since: since)))
    }

    private mutating func add(pages: Double, _ since: Instant, _ now: Instant, _ began: Instant) {
        history.add(.init(endMs: now.ms(since: began), spanMs: now.ms(since: since), pages: pages))
    }

    private static func takeWritten(_ memory: DirectMemory) throws -> [PageRun] {
        var runs: [PageRun] = []
        try memory.tracker.takeWritten { area, offset, byteCount in
            let first = memory.layout.blocks[area].firstPage + PageNumber(offset / UInt64(Limits.pageBytes))
            runs.append((first, Int(byteCount / UInt64(Limits.pageBytes))))
        }
        return runs
    }
}

extension WrittenPages {
    fileprivate static func sample(
        _ pages: PageSet, changedShare: Double?, _ reader: GuestReader, linkBytesPerS: Double
    ) throws -> WrittenPages? {
        try MemorySampler(pages.runs, reader).map { sampler in
            WrittenPages(
                pages: pages.count,
                wholeBytesPerPage: try sampler.take(linkBytesPerS: linkBytesPerS).bytesPerSeenPage,
                changedShare: changedShare)
        }
    }
}

extension PageSet {
    /// Ascending, none longer than a stripe.
    fileprivate var runs: [WriteWatch.PageRun] {
        var runs: [WriteWatch.PageRun] = []
        forEachStripeRun { runs.append(($0, $1)) }
        return runs
    }
}

/// What the lines of some pages were, to be held against what they are when these have been written.
private struct LineSums: ~Copyable {
    /// Some 20 ms of CPU time, 4 MiB of sums.
    private static let pagesMax = 16 << 10
    /// What fewer pages show may be chance.
    private static let comparedMin = 16
    private static let lineBytes = 128
    private static let lines = Limits.pageBytes / lineBytes
    private var sums = PageBuffer(byteCount: pagesMax * lines * 8)
    private var room = PageBuffer(byteCount: Limits.pageBytes)
    private var slots: [PageNumber: Int] = [:]

    /// Some of these pages.
    mutating func keep(_ runs: [WriteWatch.PageRun], _ reader: GuestReader) throws(SystemError) {
        for (slot, page) in WrittenSample.spread(runs, pagesMax: Self.pagesMax).enumerated() {
            try reader.read(first: page, count: 1, into: &room, at: 0)
            for line in 0..<Self.lines { sums.store(sum(line), at: (slot * Self.lines + line) * 8) }
            slots[page] = slot
        }
    }

    /// - Parameter runs: written since.
    /// - Returns: share of the lines of these pages that have changed; nil: too few were kept.
    mutating func changedShare(_ runs: [WriteWatch.PageRun], _ reader: GuestReader) throws(SystemError) -> Double? {
        var (pages, changed) = (0, 0)
        for run in runs {
            for page in run.first..<run.first + PageNumber(run.count) {
                guard let slot = slots[page] else { continue }
                try reader.read(first: page, count: 1, into: &room, at: 0)
                pages += 1
                for line in 0..<Self.lines where sums.word(at: (slot * Self.lines + line) * 8) != sum(line) {
                    changed += 1
                }
            }
        }
        return pages >= Self.comparedMin ? Double(changed) / Double(pages * Self.lines) : nil
    }

    private func sum(_ line: Int) -> UInt64 {
        Checksum.of(room.bytes.extracting(line * Self.lineBytes..<(line + 1) * Self.lineBytes))
    }
}
