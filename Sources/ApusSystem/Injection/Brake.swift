internal import Synchronization

/// Lets some threads of another process run for a part of the time only: a vCPU that is slowed down writes less.
///
/// ```
///   set(0.8)   |■■■■■■■■■■■■■■■■    |■■■■■■■■■■■■■■■■    |      ■ in a ptrace stop, at most 40 ms in one piece
///   stand()    |■■■■■■■■■■■■■■■■■■■ |■■■■■■■■■■■■■■■■■■■ |      nearly all the time: the guest's pause has begun
/// ```
///
/// The kernel lets threads go when their tracer ends, however it ends: an agent that is killed leaves nobody standing, and
/// its successor has nothing to put right. The process itself notices nothing, no monitor is asked, no disk is flushed.
public final class Brake: Sendable {
    /// The largest share of the time that threads may be stopped, by ``set(_:)`` and by ``stand()``.
    public static let hardest = 0.96
    static let standing = 0.98
    /// A stop and the run after it. On a busy host threads run some milliseconds longer than they should: shorter stops would
    /// hold back much less.
    public static let periodMs = 40.0

    private struct State: Sendable {
        var share = 0.0
        /// Since when they have stood nearly all the time.
        var standsSince: Instant?
        /// Until then without a moment in between.
        var fullyUntil: Instant?
        /// For the time being; the share is kept.
        var isHeld = false
        var isOver = false
        var worker: WorkerThread?
        /// Why nothing can be stopped; nil: it could so far.
        var failure: InjectionError?

        var isStopping: Bool { share > 0 && !isHeld && !isOver }
        var fullyMs: Double { isStopping ? fullyUntil.map { $0.ms(since: Instant.now()) } ?? 0 : 0 }
        var needsWorker: Bool { worker == nil && share > 0 && !isOver }
    }

    private let pid: Int32
    private let threads: [Int32]
    private let state = Monitor(State())
    private let stopped = Atomic<UInt64>(0)

    /// Stops nothing yet.
    public init(pid: Int32, threads: [Int32]) {
        self.pid = pid
        self.threads = threads
    }

    /// How long the threads have stood still so far, nanoseconds.
    public var stoppedNs: UInt64 { stopped.load(ordering: .relaxed) }
    public var share: Double { state.read { $0.share } }
    public var failure: InjectionError? { state.read { $0.failure } }
    /// Since when the threads have stood still, but for moments; nil: they do not.
    public var standsSince: Instant? { state.read { $0.failure == nil && !$0.isHeld ? $0.standsSince : nil } }

    /// From now on the threads are stopped for this share of the time.
    public func set(_ share: Double) throws(SystemError) {
        let isNew = state.update { state in
            if state.standsSince == nil { state.share = min(max(share, 0), Self.hardest) }
            return state.needsWorker
        }
        if isNew { try begin() }
    }

    /// Until ``release()`` they stand still, but for moments.
    ///
    /// - Parameter fullyForMs: at first without these, until ``ease()``, and no longer than so. A guest that is late writes as
    ///   much in a moment as a link carries until the next.
    public func stand(fullyForMs: Double = 0) throws(SystemError) {
        let isNew = state.update { state in
            state.share = Self.standing
            state.fullyUntil = fullyForMs > 0 ? Instant.now().adding(ms: fullyForMs) : nil
            state.standsSince = state.standsSince ?? Instant.now()
            return state.needsWorker
        }
        if isNew { try begin() }
    }

    /// QEMU is about to stop the guest, for which its vCPUs must run for a moment.
    public func ease() { state.update { $0.fullyUntil = nil } }

    private func begin() throws(SystemError) {
        let worker = try WorkerThread("apus-brake") { [self] in work() }
        state.update { $0.worker = worker }
    }

    /// Lets the threads run, and stops them again as before.
    public func hold() { state.update { $0.isHeld = true } }
    public func goOn() {
        state.update { state in
            state.isHeld = false
            if state.standsSince != nil { state.standsSince = Instant.now() }
        }
    }

    /// Lets the threads run, for good. Does not wait; idempotent.
    public func release() { state.update { $0.isOver = true } }
    /// Waits until they do.
    public func join() {
        release()
        state.read { $0.worker }?.join()
    }

    private func work() {
        while let share = nextShare() {
            let began = Instant.now()
            do throws(InjectionError) { try stop(forMs: Self.periodMs * share) } catch {
                state.update { $0.failure = error }
                return
            }
            let tookMs = Instant.now().ms(since: began)
            stopped.wrappingAdd(UInt64(tookMs * 1e6), ordering: .relaxed)
            // A stop that took longer is made up for, but not one that was to be longer.
            let dueMs = share == Self.standing ? min(tookMs, Self.periodMs) : tookMs
            _ = state.wait(ms: dueMs * (1 - share) / share) { $0.isOver || $0.fullyMs > 0 ? true : nil }
        }
    }

    /// Waits until something is to be stopped; nil: nothing will be any more.
    private func nextShare() -> Double? {
        enum Next { case stop(Double), end }
        let next = state.wait { state -> Next? in
            state.isOver ? .end : state.isStopping ? .stop(state.share) : nil
        }
        if case .stop(let share) = next { return share }
        return nil
    }

    private func stop(forMs ms: Double) throws(InjectionError) {
        let all = try StoppedThreads.stop(threads, of: pid, pastSeccomp: false)
        guard all.count > 0 else { throw .processGone(pid: pid) }
        let fullyMs = state.read { $0.fullyMs }
        if fullyMs > 0 {
            _ = state.wait(ms: fullyMs) { $0.fullyMs > 0 ? nil : true }
        } else {
            _ = state.wait(ms: ms) { $0.isStopping && $0.fullyMs <= 0 ? nil : true }
        }
        _ = consume all
    }
}
