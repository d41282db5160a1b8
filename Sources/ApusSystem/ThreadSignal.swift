internal import Glibc

/// A lock with a condition that threads wait for: the pthread pair, on the monotonic clock. Swift's `Mutex` has no
/// condition variable.
// @unchecked: pthread objects are made to be shared, and never move in memory.
@safe struct ThreadSignal: ~Copyable, @unchecked Sendable {
    private let mutex: UnsafeMutablePointer<pthread_mutex_t>
    private let changed: UnsafeMutablePointer<pthread_cond_t>

    init() {
        unsafe mutex = .allocate(capacity: 1)
        unsafe changed = .allocate(capacity: 1)
        // Who holds it runs on as soon as whoever waits for it would.
        var inheriting = pthread_mutexattr_t()
        unsafe pthread_mutexattr_init(&inheriting)
        unsafe pthread_mutexattr_setprotocol(&inheriting, Int32(PTHREAD_PRIO_INHERIT))
        unsafe pthread_mutex_init(mutex, &inheriting)
        var attributes = pthread_condattr_t()
        unsafe pthread_condattr_init(&attributes)
        unsafe pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        unsafe pthread_cond_init(changed, &attributes)
    }

    deinit {
        unsafe pthread_cond_destroy(changed)
        unsafe pthread_mutex_destroy(mutex)
        unsafe changed.deallocate()
        unsafe mutex.deallocate()
    }

    func lock() { unsafe pthread_mutex_lock(mutex) }
    func unlock() { unsafe pthread_mutex_unlock(mutex) }
    /// Wakes everyone who waits.
    func broadcast() { unsafe pthread_cond_broadcast(changed) }
    /// Gives the lock up while it waits.
    func wait() { unsafe pthread_cond_wait(changed, mutex) }
    /// False when the deadline has passed.
    func wait(until deadline: Instant) -> Bool {
        var until = timespec(tv_sec: Int(deadline.ns / 1_000_000_000), tv_nsec: Int(deadline.ns % 1_000_000_000))
        return unsafe pthread_cond_timedwait(changed, mutex, &until) != ETIMEDOUT
    }
}
