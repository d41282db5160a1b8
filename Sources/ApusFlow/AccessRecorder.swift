public import ApusMemory
internal import ApusSystem

/// How long what a guest uses is recorded before it moves.
public struct RecordOptions: Sendable, Equatable {
    public var msMax: Double
    /// Pages travel meanwhile, those that are not used first.
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
    private(set) var window: RecordWindow
    private(set) var used: PageSet
    /// As it was at the end of the last slice.
    private(set) var written: PageSet
    private(set) var outcome = RecordOutcome()

    /// Must be called while no disk request is under way, and before the first page travels.
    init(_ memory: DirectMemory, _ window: RecordWindow) {
        tracker = memory.tracker
        layout = memory.layout
        self.window = window
        used = PageSet(pageCount: memory.layout.pageCount)
        written = PageSet(pageCount: memory.layout.pageCount)
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
    ///
    /// - Parameter leftMs: what the link needs for all that has not travelled; nil: nothing travels before the guest moves.
    mutating func look(leftMs: Double?) {
        let beginning = Instant.now()
        var epoch: [(first: PageNumber, count: Int)] = []
        do throws(SystemError) { try look(into: &epoch) } catch { fail(error) }
        let now = Instant.now()
        let ms = now.ms(since: started)
        outcome.record.add(epoch, ms: Float(ms))
        if window.found(epoch.reduce(0) { $0 + $1.count }, ms: ms, leftMs: leftMs), leftMs != nil { lookAtWrites() }
        let tookMs = now.ms(since: beginning)
        outcome.looksMs += tookMs
        restMs = max(Self.lookMs, Self.restShare * tookMs)
    }

    private mutating func lookAtWrites() {
        let layout = layout
        do throws(SystemError) {
            try tracker.eachWritten { area, offset, byteCount in
                written.insert(
                    first: layout.blocks[area].firstPage + PageNumber(offset / UInt64(Limits.pageBytes)),
                    count: Int(byteCount / UInt64(Limits.pageBytes)))
            }
        } catch { fail(error) }
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
