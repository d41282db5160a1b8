internal import Glibc

/// A bounded queue between threads for move-only values. Capacity is fixed at the start; nothing is allocated later.
///
/// ```
/// producer -- send (blocks while full) --> [ . . . ] -- receive (blocks while empty) --> consumer
/// close(): send refuses, receive drains what is left and then gives nil
/// ```
// @unchecked: the ring is touched only while the pthread mutex is held.
@safe public final class BoundedQueue<Element: ~Copyable & Sendable>: @unchecked Sendable {
    private let ring: UnsafeMutablePointer<Element>
    private let mutex: UnsafeMutablePointer<pthread_mutex_t>
    private let changed: UnsafeMutablePointer<pthread_cond_t>
    private let capacity: Int
    private var head = 0
    private var count = 0
    private var closed = false
    private var waiters = 0

    public init(capacity: Int) {
        precondition(capacity > 0)
        self.capacity = capacity
        unsafe ring = .allocate(capacity: capacity)
        unsafe mutex = .allocate(capacity: 1)
        unsafe changed = .allocate(capacity: 1)
        unsafe pthread_mutex_init(mutex, nil)
        unsafe pthread_cond_init(changed, nil)
    }

    deinit {
        for i in 0..<count { unsafe (ring + (head + i) % capacity).deinitialize(count: 1) }
        unsafe ring.deallocate()
        unsafe pthread_cond_destroy(changed)
        unsafe pthread_mutex_destroy(mutex)
        unsafe changed.deallocate()
        unsafe mutex.deallocate()
    }

    /// Blocks while the queue is full. Gives the element back when the queue is closed.
    public func send(_ element: consuming Element) -> Element? {
        unsafe pthread_mutex_lock(mutex)
        defer { unsafe pthread_mutex_unlock(mutex) }
        while count == capacity && !closed { sleep() }
        if closed { return element }
        unsafe (ring + (head + count) % capacity).initialize(to: element)
        count += 1
        wake()
        return nil
    }

    /// Blocks while the queue is empty; nil once it is closed and drained.
    public func receive() -> Element? {
        unsafe pthread_mutex_lock(mutex)
        defer { unsafe pthread_mutex_unlock(mutex) }
        while count == 0 && !closed { sleep() }
        return take()
    }

    /// Nil when nothing is waiting.
    public func receiveIfAny() -> Element? {
        unsafe pthread_mutex_lock(mutex)
        defer { unsafe pthread_mutex_unlock(mutex) }
        return take()
    }

    public func close() {
        unsafe pthread_mutex_lock(mutex)
        closed = true
        unsafe pthread_cond_broadcast(changed)
        unsafe pthread_mutex_unlock(mutex)
    }

    public var depth: Int {
        unsafe pthread_mutex_lock(mutex)
        defer { unsafe pthread_mutex_unlock(mutex) }
        return count
    }

    private func take() -> Element? {
        if count == 0 { return nil }
        let element = unsafe (ring + head).move()
        head = (head + 1) % capacity
        count -= 1
        wake()
        return element
    }

    private func sleep() {
        waiters += 1
        unsafe pthread_cond_wait(changed, mutex)
        waiters -= 1
    }

    // One condition serves producers and consumers: broadcast, but only when somebody sleeps.
    private func wake() { if waiters > 0 { unsafe pthread_cond_broadcast(changed) } }
}
