internal import Synchronization

/// Lets some threads of another process run for a part of the time only: a vCPU that is slowed down writes less.
///
/// ```
///   set(0.8)   |■■■■■■■■■■■■■■■■    |■■■■■■■■■■■■■■■■    |      ■ in a ptrace stop; 10 ms from one to the next
///   stand()    |■■■■■■■■■■■■■■■■■■■■■■■■ ■■■■■■■■■■■ ■■■■■ |    the guest's pause has begun; moments after ease(), or in time
/// ```
///
/// A moment lets QEMU's own requests through: a vCPU that is asked to stop, or that holds a lock, must run for it. A guest that is
/// late writes at its fastest in each, so they are as short as a thread with a real-time rank can make them.
///
/// The kernel lets threads go when their tracer ends, however it ends: an agent that is killed leaves nobody standing, and
/// its successor has nothing to put right. The process itself notices nothing, no monitor is asked, no disk is flushed.
public final class Brake: Sendable {
    /// The largest share of the time that ``set(_:)`` stops threads for.
    public static let hardest = 0.98
    /// A stop and the run after it.
    public static let periodMs = 10.0
    /// Of threads that stand: how long in one piece, and their moments, which are a share of how long they have had such. On a
    /// busy host a thread may not get to run within a short one.
    static let standMs = 5.0
    static let momentMs = 0.2...2.0
    public static let momentShare = 0.05

    private enum Order {
        case none
        case share(Double)
        /// Without moments until then.
        case stand(since: Instant, fullyUntil: Instant)
    }

    private struct State: Sendable {
        var order = Order.none
        /// For the time being; the order is kept.
        var isHeld = false
        var isOver = false
        var worker: WorkerThread?
        /// Why nothing can be stopped; nil: it could so far.
        var failure: InjectionError?

        var share: Double {
            switch order {
            case .none: 0
            case .share(let share): share
            case .stand: 1
            }
        }
        var isStopping: Bool { share > 0 && !isHeld && !isOver }
        /// How long it is to stand without a moment yet; negative: so long it has had some.
        var fullyMs: Double? {
            guard isStopping, case .stand(_, let until) = order else { return nil }
            return until.ms(since: Instant.now())
        }
        var needsWorker: Bool { worker == nil && share > 0 && !isOver }
    }

    private let pid: Int32
    private let threads: [Int32]
    private let meter: BusyMeter
    private let state = Monitor(State())
    private let stopped = Atomic<UInt64>(0)

    /// Stops nothing yet.
    public init(pid: Int32, threads: [Int32]) {
        self.pid = pid
        self.threads = threads
        meter = BusyMeter(pid: pid, threads: threads)
    }

    /// How long the threads have stood still so far, nanoseconds.
    public var stoppedNs: UInt64 { stopped.load(ordering: .relaxed) }
    /// How busy they have been since this was made; of use before anything is stopped. nil: not known.
    public var busyShare: Double? { meter.share }
    public var share: Double { state.read { $0.share } }
    public var failure: InjectionError? { state.read { $0.failure } }
    /// Since when the threads have stood still, but for moments; nil: they do not.
    public var standsSince: Instant? {
        state.read {
            guard case .stand(let since, _) = $0.order, $0.failure == nil, !$0.isHeld else { return nil }
            return since
        }
    }

    /// From now on the threads are stopped for this share of the time; those that stand go on to.
    public func set(_ share: Double) throws(SystemError) {
        let isNew = state.update { state in
            if case .stand = state.order { return false }
            state.order = .share(min(max(share, 0), Self.hardest))
            return state.needsWorker
        }
        if isNew { try begin() }
    }

    /// Until ``release()`` they stand still, but for moments.
    ///
    /// - Parameter fullyForMs: at first without these, until ``ease()``, and no longer than so.
    public func stand(fullyForMs: Double) throws(SystemError) {
        let isNew = state.update { state in
            let now = Instant.now()
            var began = now
            if case .stand(let since, _) = state.order { began = since }
            state.order = .stand(since: began, fullyUntil: now.adding(ms: fullyForMs))
            return state.needsWorker
        }
        if isNew { try begin() }
    }

    /// QEMU is about to stop the guest, for which its vCPUs must run for a moment.
    public func ease() {
        state.update { state in
            guard case .stand(let since, let until) = state.order else { return }
            state.order = .stand(since: since, fullyUntil: min(until, Instant.now()))
        }
    }

    private func begin() throws(SystemError) {
        let worker = try WorkerThread("apus-brake", rank: WorkerThread.urgent) { [self] in work() }
        state.update { $0.worker = worker }
    }

    /// Lets the threads run, and stops them again as before.
    public func hold() { state.update { $0.isHeld = true } }
    public func goOn() {
        state.update { state in
            state.isHeld = false
            if case .stand(_, let until) = state.order { state.order = .stand(since: Instant.now(), fullyUntil: until) }
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
            do throws(InjectionError) { try stop(share) } catch {
                state.update { $0.failure = error }
                return
            }
            let tookMs = Instant.now().ms(since: began)
            stopped.wrappingAdd(UInt64(tookMs * 1e6), ordering: .relaxed)
            // A stop that took longer is made up for, but not one that was to be longer.
            let runMs =
                if let fullyMs = state.read({ $0.fullyMs }) {
                    min(max(-fullyMs * Self.momentShare, Self.momentMs.lowerBound), Self.momentMs.upperBound)
                } else { share < 1 ? tookMs * (1 - share) / share : 0 }
            _ = state.wait(ms: runMs) { $0.isOver || $0.fullyMs.map { $0 > 0 } == true ? true : nil }
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

    /// One stop.
    private func stop(_ share: Double) throws(InjectionError) {
        let all = try StoppedThreads.stop(threads, of: pid, pastSeccomp: false)
        guard all.count > 0 else { throw .processGone(pid: pid) }
        let began = Instant.now()
        while true {
            let (restMs, stands) = state.read { state -> (Double, Bool) in
                let stoodMs = Instant.now().ms(since: began)
                guard state.isStopping else { return (0, false) }
                guard let fullyMs = state.fullyMs else { return (Self.periodMs * share - stoodMs, false) }
                return (max(fullyMs, Self.standMs - stoodMs), true)
            }
            if restMs <= 0 { break }
            // Its end may be nearer or farther by then.
            _ = state.wait(ms: min(restMs, Self.standMs)) {
                $0.isStopping && ($0.fullyMs != nil) == stands ? nil : true
            }
        }
        _ = consume all
    }
}
