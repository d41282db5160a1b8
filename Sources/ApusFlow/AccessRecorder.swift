public import ApusMemory
internal import ApusSystem

/// How long what a guest uses is recorded before it moves.
public struct RecordOptions: Sendable, Equatable {
    public var msMax: Double
    /// Pages that are not used travel meanwhile.
    public var sendsMeanwhile: Bool

    public init(msMax: Double, sendsMeanwhile: Bool) {
        self.msMax = msMax
        self.sendsMeanwhile = sendsMeanwhile
    }
}

/// What came of it.
public struct RecordOutcome: Sendable, Equatable {
    public enum Way: String, Sendable, Codable {
        /// Reads and writes.
        case uses
        /// Writes only: the page tables could not be emptied.
        case writes
    }
    public var record = AccessRecord()
    public var way: Way?
    /// Why it was not, or not as it should be.
    public var lack: String?
    /// What emptying the page tables took, and all looks together.
    public var zapMs = 0.0
    public var looksMs = 0.0

    public init() {}
}

/// When a record is long enough: what is to come would add little, or more than can be sent first. A pure value.
struct RecordWindow: Sendable {
    private let msMax: Double
    private let pagesMax: Int
    private var sliceStartMs = 0.0
    private var slicePages = 0
    private var firstSlicePages: Int?
    private(set) var pages = 0
    private(set) var isOver = false

    static let sliceMs = 50.0
    /// A slice with no more than this share of the first one's new pages, which is a burst.
    static let flatShare = 0.03

    init(msMax: Double, pagesMax: Int) {
        self.msMax = msMax
        self.pagesMax = pagesMax
    }

    /// A look has found so many pages for the first time.
    mutating func found(_ count: Int, ms: Double) {
        pages += count
        slicePages += count
        if ms >= msMax || pages >= pagesMax { isOver = true }
        guard ms - sliceStartMs >= Self.sliceMs else { return }
        if let first = firstSlicePages {
            if Double(slicePages) <= Double(first) * Self.flatShare { isOver = true }
        } else {
            firstSlicePages = slicePages
        }
        sliceStartMs = ms
        slicePages = 0
    }
}

/// Looks every few milliseconds which pages the guest has begun to use.
struct AccessRecorder: ~Copyable {
    /// Between two looks: within them the order of pages is not known. Longer where a look takes long: a large working set
    /// must not cost more than a fifth of a processor.
    static let lookMs = 5.0
    private static let restShare = 4.0
    private(set) var restMs = lookMs

    private let tracker: WriteTracker
    private let layout: Layout
    private var started = Instant.now()
    private var hasFailed = false
    private var window: RecordWindow
    private(set) var used: PageSet
    private(set) var outcome = RecordOutcome()

    /// Must be called while no disk request is under way, and before the first page travels.
    init(_ memory: DirectMemory, _ window: RecordWindow) {
        tracker = memory.tracker
        layout = memory.layout
        self.window = window
        used = PageSet(pageCount: memory.layout.pageCount)
        let beginning = Instant.now()
        do throws(InjectionError) {
            try tracker.forgetUse()
            outcome.way = .uses
        } catch {
            outcome.way = .writes
            outcome.lack = "\(error)"
        }
        started = Instant.now()
        outcome.zapMs = started.ms(since: beginning)
        // What was written until now says nothing any more.
        do throws(SystemError) { try tracker.takeWritten { _, _, _ in } } catch { fail(error) }
    }

    /// Reads are seen too, and writes are told from now on as if nothing had been looked at.
    var seesAll: Bool { outcome.way == .uses && !isOver }
    var isOver: Bool { window.isOver || hasFailed }

    /// Whoever moves the guest goes on without a record; what is wrong with its memory shows there.
    private mutating func fail(_ error: SystemError) {
        hasFailed = true
        outcome.lack = "\(error)"
    }

    /// Notes what has been used since the last look.
    mutating func look() {
        let beginning = Instant.now()
        var epoch: [(first: PageNumber, count: Int)] = []
        do throws(SystemError) { try look(into: &epoch) } catch { fail(error) }
        let now = Instant.now()
        let ms = now.ms(since: started)
        outcome.record.add(epoch, ms: Float(ms))
        window.found(epoch.reduce(0) { $0 + $1.count }, ms: ms)
        let tookMs = now.ms(since: beginning)
        outcome.looksMs += tookMs
        restMs = max(Self.lookMs, Self.restShare * tookMs)
    }

    private mutating func look(into epoch: inout [(first: PageNumber, count: Int)]) throws(SystemError) {
        let layout = layout
        if outcome.way == .uses {
            try tracker.eachUsed { Self.note($0, $1, $2, layout, &used, &epoch) }
        } else {
            try tracker.takeWritten { Self.note($0, $1, $2, layout, &used, &epoch) }
        }
    }

    /// Adds what is new of a run.
    private static func note(
        _ area: Int, _ offset: UInt64, _ byteCount: UInt64, _ layout: Layout, _ used: inout PageSet,
        _ epoch: inout [(first: PageNumber, count: Int)]
    ) {
        var page = layout.blocks[area].firstPage + PageNumber(offset / UInt64(Limits.pageBytes))
        let end = page + PageNumber(byteCount / UInt64(Limits.pageBytes))
        while page < end {
            let run = used.uniformRun(from: page, count: Int(end - page))
            if !run.inSet {
                used.insert(first: page, count: run.count)
                epoch.append((page, run.count))
            }
            page += PageNumber(run.count)
        }
    }
}

/// What of a guest's memory can travel while it is recorded what it uses.
struct ColdPages: Sendable {
    private var runs: ArraySlice<(first: PageNumber, count: Int)>
    private var page: PageNumber = 0

    init(_ runs: [(first: PageNumber, count: Int)]) { self.runs = runs[...] }

    /// All that was not used when it was its turn has been given.
    var isEmpty: Bool { runs.isEmpty }

    /// The next run that is not used, within one stripe of 64 pages; nil: there is none any more.
    mutating func next(besides used: borrowing PageSet) -> (first: PageNumber, count: Int)? {
        while let run = runs.first {
            page = max(page, run.first)
            let end = run.first + PageNumber(run.count)
            while page < end {
                let found = used.uniformRun(from: page, count: Int(min(end, (page | 63) + 1) - page))
                defer { page += PageNumber(found.count) }
                if !found.inSet { return (page, found.count) }
            }
            runs.removeFirst()
        }
        return nil
    }
}
