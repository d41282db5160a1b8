internal import CApus
internal import Glibc

/// A kernel thread for work that blocks: lanes, readers, writers. Such work must never run on Swift's cooperative pool,
/// which has one thread per core and would starve.
public final class WorkerThread: Sendable {
    private let done = Latch()

    /// For work that may use whole cores for seconds: a vCPU that wants the core gets three quarters of it.
    public static let background: Int32 = 5

    /// Starts `body` on a thread of its own. `name` shows up in `top -H` (15 bytes at most).
    ///
    /// - Parameter nice: as of nice(2).
    public init(_ name: String, nice: Int32 = 0, _ body: @escaping @Sendable () -> Void) throws(SystemError) {
        let start = Start(name: String(name.prefix(15)), nice: nice, body: body, done: done)
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
        let body: @Sendable () -> Void
        let done: Latch
        init(name: String, nice: Int32, body: @escaping @Sendable () -> Void, done: Latch) {
            self.name = name
            self.nice = nice
            self.body = body
            self.done = done
        }
    }
}
