internal import Glibc

/// A value behind a lock whose changes threads can wait for.
///
/// Swift's `Mutex` has no condition variable; this is the pthread pair. Used per batch and per state change, never per
/// page.
// @unchecked: `value` is touched only while the pthread mutex is held.
@safe public final class Monitor<Value>: @unchecked Sendable {
    private let mutex: UnsafeMutablePointer<pthread_mutex_t>
    private let changed: UnsafeMutablePointer<pthread_cond_t>
    private var value: Value

    public init(_ value: sending Value) {
        unsafe mutex = .allocate(capacity: 1)
        unsafe changed = .allocate(capacity: 1)
        unsafe pthread_mutex_init(mutex, nil)
        var attributes = pthread_condattr_t()
        unsafe pthread_condattr_init(&attributes)
        unsafe pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        unsafe pthread_cond_init(changed, &attributes)
        self.value = value
    }

    deinit {
        unsafe pthread_cond_destroy(changed)
        unsafe pthread_mutex_destroy(mutex)
        unsafe changed.deallocate()
        unsafe mutex.deallocate()
    }

    /// Reads or changes the value; wakes all waiters.
    public func update<R, E: Error>(_ body: (inout Value) throws(E) -> R) throws(E) -> R {
        unsafe pthread_mutex_lock(mutex)
        defer {
            unsafe pthread_cond_broadcast(changed)
            unsafe pthread_mutex_unlock(mutex)
        }
        return try body(&value)
    }

    /// Reads the value without waking anyone.
    public func read<R>(_ body: (borrowing Value) -> R) -> R {
        unsafe pthread_mutex_lock(mutex)
        defer { unsafe pthread_mutex_unlock(mutex) }
        return body(value)
    }

    /// Waits until `body` returns a result; nil after `ms` milliseconds (nil: waits without limit).
    public func wait<R>(ms: Double? = nil, _ body: (inout Value) -> R?) -> R? {
        unsafe pthread_mutex_lock(mutex)
        defer { unsafe pthread_mutex_unlock(mutex) }
        let deadline = ms.map { Instant.now().adding(ms: $0) }
        while true {
            if let result = body(&value) {
                unsafe pthread_cond_broadcast(changed)
                return result
            }
            guard let deadline else {
                unsafe pthread_cond_wait(changed, mutex)
                continue
            }
            var until = timespec(tv_sec: Int(deadline.ns / 1_000_000_000), tv_nsec: Int(deadline.ns % 1_000_000_000))
            if unsafe pthread_cond_timedwait(changed, mutex, &until) == ETIMEDOUT {
                if let result = body(&value) {
                    unsafe pthread_cond_broadcast(changed)
                    return result
                }
                return nil
            }
        }
    }
}

/// Opens once; threads wait for it.
public final class Latch: Sendable {
    private let isOpen = Monitor(false)
    public init() {}
    public func open() { isOpen.update { $0 = true } }
    public var isOpened: Bool { isOpen.read { $0 } }
    public func wait() { _ = isOpen.wait { $0 ? true : nil } }
    /// False when it is still closed after `ms`.
    public func wait(ms: Double) -> Bool { isOpen.wait(ms: ms) { $0 ? true : nil } ?? false }
}
