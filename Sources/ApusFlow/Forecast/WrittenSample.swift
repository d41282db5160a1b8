internal import ApusMemory
internal import ApusSystem

/// How many pages a guest has written, told from some of them, which are read again: of a guest that goes by QEMU's stream
/// nobody else tells before a round of QEMU's is over, and that may take many seconds.
///
/// ```
///   renew             sums of every nth page of its memory
///   writtenPages      of these the share that has another sum by now, of all pages
/// ```
///
/// What is written with what was there before is not seen. Reading costs the guest no fault.
struct WrittenSample: ~Copyable, Sendable {
    /// Pages that are read: 8 MiB, some 2 ms of CPU time. A hundred of them written are known to a tenth.
    static let pagesMax = 2048
    /// Of fewer that were written, chance tells too much.
    private static let writtenMin = 24

    private let reader: GuestReader
    private let pages: [PageNumber]
    private let allPages: Int
    private var sums: [UInt64]
    private var latest: [UInt64]
    private var room = PageBuffer(byteCount: Limits.pageBytes)

    /// - Returns: nil: nothing of the guest's memory can be read.
    static func begin(_ reader: GuestReader) throws(SystemError) -> WrittenSample? {
        let runs = try reader.dataRuns()
        guard !runs.isEmpty else { return nil }
        var sample = WrittenSample(reader, runs)
        try sample.read()
        sample.renew()
        return sample
    }

    private init(_ reader: GuestReader, _ runs: [(first: PageNumber, count: Int)]) {
        self.reader = reader
        allPages = runs.reduce(0) { $0 + $1.count }
        pages = Self.spread(runs, pagesMax: Self.pagesMax)
        sums = Array(repeating: 0, count: pages.count)
        latest = sums
    }

    /// One out of each of as many equal parts, never at the same place of it: guests have habits.
    static func spread(_ runs: [(first: PageNumber, count: Int)], pagesMax: Int) -> [PageNumber] {
        let allPages = runs.reduce(0) { $0 + $1.count }
        let count = min(pagesMax, allPages)
        var pages: [PageNumber] = []
        var (run, before) = (0, 0)
        for part in 0..<count {
            let (start, end) = (part * allPages / count, (part + 1) * allPages / count)
            let at = start + Int((UInt64(part) &* 0x9E37_79B9_7F4A_7C15) >> 33) % (end - start)
            while at - before >= runs[run].count {
                before += runs[run].count
                run += 1
            }
            pages.append(runs[run].first + PageNumber(at - before))
        }
        return pages
    }

    /// Pages written since it was made or renewed; nil: too few to tell. Blocks for some milliseconds.
    mutating func writtenPages() throws(SystemError) -> Double? {
        try read()
        var written = 0
        for index in pages.indices where latest[index] != sums[index] { written += 1 }
        guard written == 0 || written >= min(Self.writtenMin, pages.count) else { return nil }
        return Double(written) * Double(allPages) / Double(pages.count)
    }

    /// Counts anew, from the latest look on.
    mutating func renew() { sums = latest }

    private mutating func read() throws(SystemError) {
        for (index, page) in pages.enumerated() {
            try reader.read(first: page, count: 1, into: &room, at: 0)
            latest[index] = Checksum.of(room.bytes)
        }
    }
}

/// The thread that looks, from when memory begins to travel until the switch is near.
final class WrittenLooks: Sendable {
    private let seen = Monitor<[TimedLook]>([])
    private let ends = Latch()
    /// Older ones are not waited for by anybody.
    private static let keptMax = 16
    /// So long from one renewal to the next: the looks of one span are about the same time.
    private static let spanMs = 1_600.0

    func begin(_ reader: GuestReader, _ brake: Brake?) {
        // Without a thread the rounds tell, as they do anyway.
        _ = try? WorkerThread("apus-look", nice: WorkerThread.background) { [self] in try? look(reader, brake) }
    }

    func end() { ends.open() }

    /// What was seen since the last call, the oldest first.
    func take() -> [TimedLook] {
        seen.update { looks in
            defer { looks = [] }
            return looks
        }
    }

    private func look(_ reader: GuestReader, _ brake: Brake?) throws(SystemError) {
        guard var sample = try WrittenSample.begin(reader) else { return }
        var looks = RoundLooks(brake)
        while !ends.wait(ms: looks.untilDueMs) {
            let look = try looks.look { () throws(SystemError) in try sample.writtenPages() }
            if let look, look.isNews { seen.update { $0 = ($0 + [look.seen]).suffix(Self.keptMax) } }
            guard looks.sinceScanMs > Self.spanMs else { continue }
            sample.renew()
            _ = looks.close()
        }
    }
}
