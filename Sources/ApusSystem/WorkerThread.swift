internal import CApus
internal import Glibc

/// A kernel thread for work that blocks: lanes, readers, writers. Such work must never run on Swift's cooperative pool,
/// which has one thread per core and would starve.
public final class WorkerThread: Sendable {
    private let done = Latch()

    /// For work that may use whole cores for seconds: a vCPU that wants the core gets three quarters of it.
    public static let background: Int32 = 5

    /// Real-time ranks, for short pieces of work that somebody waits for: they run before everything that has no rank. Where
    /// the kernel does not allow that, a low niceness stands for it; where not even that, nothing does.
    public static let urgent: Int32 = 2
    /// For who looks for such work without sleeping: behind it.
    public static let watching: Int32 = 1

    /// Starts `body` on a thread of its own. `name` shows up in `top -H` (15 bytes at most).
    ///
    /// - Parameters:
    ///   - nice: as of nice(2).
    ///   - rank: ``urgent``, ``watching``; 0: none.
    public init(
        _ name: String, nice: Int32 = 0, rank: Int32 = 0, _ body: @escaping @Sendable () -> Void
    ) throws(SystemError) {
        let start = Start(name: String(name.prefix(15)), nice: nice, rank: rank, body: body, done: done)
        var thread = pthread_t()
        // The thread receives one retained reference and releases it.
        let box = unsafe Unmanaged.passRetained(start)
        let code = unsafe pthread_create(
            &thread, nil,
            { argument in
                guard let argument = unsafe argument else { return nil }
                let start = unsafe Unmanaged<Start>.fromOpaque(argument).takeRetainedValue()
                unsafe start.name.withCString { unsafe capus_name_thread($0) }
                if start.nice != 0 { capus_nice_thread(start.nice) }
                if start.rank != 0 { capus_hurry_thread(start.rank) }
                start.body()
                start.done.open()
                return nil
            }, box.toOpaque())
        guard code == 0 else {
            unsafe box.release()
            throw SystemError("pthread_create", code: code)
        }
        pthread_detach(thread)
    }

    /// Blocks until the body has returned.
    public func join() { done.wait() }

    /// Waits at most `ms`; false when the body is still running.
    public func join(ms: Double) -> Bool { done.wait(ms: ms) }

    private final class Start: Sendable {
        let name: String
        let nice: Int32
        let rank: Int32
        let body: @Sendable () -> Void
        let done: Latch
        init(name: String, nice: Int32, rank: Int32, body: @escaping @Sendable () -> Void, done: Latch) {
            self.name = name
            self.nice = nice
            self.rank = rank
            self.body = body
            self.done = done
        }
    }
}
