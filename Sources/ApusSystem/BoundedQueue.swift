/// A bounded queue between threads for move-only values. Capacity is fixed at the start; nothing is allocated later.
///
/// ```
/// producer -- send (blocks while full) --> [ . . . ] -- receive (blocks while empty) --> consumer
/// close(): send refuses, receive drains what is left and then gives nil
/// ```
// @unchecked: the ring is touched only while the lock is held.
@safe public final class BoundedQueue<Element: ~Copyable & Sendable>: @unchecked Sendable {
    private let ring: UnsafeMutablePointer<Element>
    private let signal = ThreadSignal()
    private let capacity: Int
    private var head = 0
    private var count = 0
    private var closed = false
    private var waiters = 0

    public init(capacity: Int) {
        precondition(capacity > 0)
        self.capacity = capacity
        unsafe ring = .allocate(capacity: capacity)
    }

    deinit {
        for i in 0..<count { unsafe (ring + (head + i) % capacity).deinitialize(count: 1) }
        unsafe ring.deallocate()
    }

    /// Blocks while the queue is full. Gives the element back when the queue is closed.
    public func send(_ element: consuming Element) -> Element? {
        signal.lock()
        defer { signal.unlock() }
        while count == capacity && !closed { sleep() }
        if closed { return element }
        unsafe (ring + (head + count) % capacity).initialize(to: element)
        count += 1
        wake()
        return nil
    }

    /// Blocks while the queue is empty; nil once it is closed and drained.
    public func receive() -> Element? {
        signal.lock()
        defer { signal.unlock() }
        while count == 0 && !closed { sleep() }
        return take()
    }

    /// Waits until ``receive()`` would not block, for at most `ms`; false when it still would. For the only consumer.
    public func isReady(withinMs ms: Double) -> Bool {
        signal.lock()
        defer { signal.unlock() }
        let deadline = Instant.now().adding(ms: ms)
        while count == 0 && !closed {
            waiters += 1
            defer { waiters -= 1 }
            if !signal.wait(until: deadline) { break }
        }
        return count > 0 || closed
    }

    /// Never blocks. Gives the element back when the queue is full or closed.
    public func sendIfRoom(_ element: consuming Element) -> Element? {
        signal.lock()
        defer { signal.unlock() }
        if closed || count == capacity { return element }
        unsafe (ring + (head + count) % capacity).initialize(to: element)
        count += 1
        wake()
        return nil
    }

    /// Nil when nothing is waiting.
    public func receiveIfAny() -> Element? {
        signal.lock()
        defer { signal.unlock() }
        return take()
    }

    public func close() {
        signal.lock()
        closed = true
        signal.broadcast()
        signal.unlock()
    }

    public var depth: Int {
        signal.lock()
        defer { signal.unlock() }
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
        signal.wait()
        waiters -= 1
    }

    // One condition serves producers and consumers: broadcast, but only when somebody sleeps.
    private func wake() { if waiters > 0 { signal.broadcast() } }
}
