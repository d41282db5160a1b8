public import ApusMemory
public import ApusSystem
internal import Synchronization

/// Guest RAM that the source agent owns from outside: where it can be read, and who tells what was written.
public final class DirectMemory: Sendable {
    /// The RAM blocks that travel by this port.
    public let layout: Layout
    /// Names of those that QEMU takes for private: it sends their pages all the same, and they are dropped. The others it
    /// leaves out of its stream (`x-ignore-shared`).
    let sentByQemu: Set<String>
    /// One per block.
    let windows: [GuestWindow]
    /// Its areas are the blocks, in the same order.
    let tracker: WriteTracker
    /// nil: no device writes into memory that it was given earlier.
    let drain: Drain?
    /// What the guest used just before it moved; noted by the flow that moves it.
    public let recorded = Monitor(RecordOutcome())

    /// Stops the guest with all its disk requests finished, and lets it go on.
    ///
    /// With O_DIRECT a disk writes into pages that were pinned when the request began. Such a write comes without a page
    /// fault, and possibly after a scan has reported the page and protected it again. Between `stop` and `resume` no
    /// request is under way, so what a scan reports there is all there is.
    public struct Drain: Sendable {
        /// False: the guest does not run anyway, and is not to be resumed.
        let stop: @Sendable () throws -> Bool
        let resume: @Sendable () throws -> Void

        public init(stop: @escaping @Sendable () throws -> Bool, resume: @escaping @Sendable () throws -> Void) {
            self.stop = stop
            self.resume = resume
        }
    }

    public init(
        layout: Layout, sentByQemu: Set<String>, windows: [GuestWindow], tracker: WriteTracker, drain: Drain?
    ) {
        precondition(layout.blocks.count == windows.count)
        self.layout = layout
        self.sentByQemu = sentByQemu
        self.windows = windows
        self.tracker = tracker
        self.drain = drain
    }

    /// For a ``PullServer``: they outlive the tracker.
    public var serverPorts: [BlockPort] { windows.map { .mapped($0) } }
    /// QEMU must migrate from the beginning, for it stops the guest only when it has sent nearly all that it thinks due.
    public var qemuSendsPagesToo: Bool { !sentByQemu.isEmpty }

    var reader: GuestReader { GuestReader(layout, windows.map { .mapped($0) }) }

    /// Takes everything out of QEMU that was put there. Blocks; idempotent.
    public func detach() throws { try tracker.detach() }
}

/// What a direct source and those who wait for it say to each other.
///
/// ```
///   rounds, QEMU held --letQemuFinish--> rounds, QEMU free --beginLast--> last --finished--> done
///      `------------------------------------ beginLast --------------------^     any --end--> over
/// ```
final class DirectOrders: Sendable {
    private enum State: Sendable, Equatable {
        case rounds(qemuIsHeld: Bool)
        /// The guest is stopped: scan once more, send everything.
        case last
        /// Everything is in the lanes' queues but the rest, which the destination fetches when its guest runs.
        case done(rest: PageSet?)
        case over

        var isRounds: Bool { if case .rounds = self { true } else { false } }
    }
    private let state = Monitor(State.rounds(qemuIsHeld: true))
    private let hurry = Monitor(Hurry.none)

    /// QEMU may send the rest of its pages, and stop the guest.
    func letQemuFinish() { state.update { if $0.isRounds { $0 = .rounds(qemuIsHeld: false) } } }
    /// Blocks until it may; false: the flow is over.
    func waitUntilQemuMayFinish() -> Bool {
        state.wait { $0 == .rounds(qemuIsHeld: true) ? nil : $0 != .over } ?? false
    }

    private enum Hurry { case none, asked, heard }
    /// The guest is to move now, whatever of its memory has not travelled.
    func moveNow() {
        hurry.update { if $0 == .none { $0 = .asked } }
        state.update { _ in }
    }
    private func isNewlyHurried() -> Bool {
        hurry.update { hurry in
            defer { if hurry == .asked { hurry = .heard } }
            return hurry == .asked
        }
    }
    /// The guest was asked to move at once.
    var isHurried: Bool { hurry.read { $0 != .none } }

    /// Called once the guest is stopped.
    func beginLast() { state.update { if $0.isRounds { $0 = .last } } }
    /// Blocks until all of the guest's memory is in the lanes' queues; false: the flow has failed.
    func waitForLast() -> Bool {
        state.wait { state in
            switch state {
            case .rounds, .last: nil
            case .done: true
            case .over: false
            }
        } ?? false
    }

    func end() { state.update { $0 = .over } }
    func finished(rest: PageSet? = nil) { state.update { if $0 == .last { $0 = .done(rest: rest) } } }
    /// Pages whose newest content stays here; nil: none.
    var rest: PageSet? { state.read { if case .done(let rest) = $0 { rest } else { nil } } }

    enum Next { case round, last, over }
    /// Waits until the next round is due.
    func next(afterMs: Double) -> Next {
        state.wait(ms: afterMs.isFinite ? max(afterMs, 0) : nil) { state in
            switch state {
            case .rounds: isNewlyHurried() ? .round : nil
            case .last, .done: .last
            case .over: .over
            }
        } ?? .round
    }
    /// Blocks until the guest is stopped; false: the flow is over.
    func waitForStop() -> Bool {
        state.wait { state in
            switch state {
            case .rounds: nil
            case .last, .done: true
            case .over: false
            }
        } ?? false
    }
    var isOver: Bool { state.read { $0 == .over } }
    /// Somebody waits: no time for anything else.
    var isDue: Bool { state.read { !$0.isRounds } }
}

/// How far the rounds are; written by the direct source, read by anyone.
final class RoundCounters: Sendable {
    let round = Atomic<UInt64>(0)
    let remainingPages = Atomic<UInt64>(0)
    let heldPages = Atomic<UInt64>(0)
    /// Distinct pages written per second in the last round.
    let dirtyPagesPerS = Atomic<UInt64>(0)
    let predictedDowntimeUs = Atomic<UInt64>(0)
    /// Pages of the first pass.
    let dataPages = Atomic<UInt64>(0)
    /// What is known of the guest's writing.
    let writing = Monitor(Writing())

    struct Writing: Sendable {
        var history: WorkingSetHistory?
        var curve: WorkingSet?
        var shortfall: Shortfall?
    }
}

/// The rounds of a direct source at one moment.
public struct RoundSample: Sendable, Equatable {
    /// Rounds begun; 1 is the first pass over all memory.
    public var round: Int
    public var totalBytes: UInt64
    public var remainingBytes: UInt64
    /// Pages held back because they are written in every round.
    public var heldPages: UInt64
    public var dirtyBytesPerS: Double
    /// The pause if the guest were stopped after this round; nil before the second.
    public var predictedDowntimeMs: Double?
    /// Pages of the first pass.
    public var dataPages: UInt64 = 0
    /// What the guest was seen to write, and the curve through it.
    public var history: WorkingSetHistory?
    public var curve: WorkingSet?
    /// What keeps the guest from being stopped, as the gate has seen it last.
    public var shortfall: Shortfall?

    public init(
        round: Int, totalBytes: UInt64, remainingBytes: UInt64, heldPages: UInt64, dirtyBytesPerS: Double,
        predictedDowntimeMs: Double?
    ) {
        self.round = round
        self.totalBytes = totalBytes
        self.remainingBytes = remainingBytes
        self.heldPages = heldPages
        self.dirtyBytesPerS = dirtyBytesPerS
        self.predictedDowntimeMs = predictedDowntimeMs
    }
}

extension RoundCounters {
    func sample(_ layout: Layout) -> RoundSample {
        var sample = RoundSample(
            round: Int(round.now), totalBytes: layout.byteCount,
            remainingBytes: remainingPages.now * UInt64(Limits.pageBytes), heldPages: heldPages.now,
            dirtyBytesPerS: Double(dirtyPagesPerS.now) * Double(Limits.pageBytes),
            predictedDowntimeMs: predictedDowntimeUs.now > 0 ? Double(predictedDowntimeUs.now) / 1000 : nil)
        sample.dataPages = dataPages.now
        let writing = writing.read { $0 }
        (sample.history, sample.curve, sample.shortfall) = (writing.history, writing.curve, writing.shortfall)
        return sample
    }
}
