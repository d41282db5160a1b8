/// A value behind a lock whose changes threads can wait for.
///
/// Used per batch and per state change, never per page.
// @unchecked: `value` is touched only while the lock is held.
@safe public final class Monitor<Value>: @unchecked Sendable {
    private let signal = ThreadSignal()
    private var value: Value

    public init(_ value: sending Value) { self.value = value }

    /// Reads or changes the value; wakes all waiters.
    public func update<R, E: Error>(_ body: (inout Value) throws(E) -> R) throws(E) -> R {
        signal.lock()
        defer {
            signal.broadcast()
            signal.unlock()
        }
        return try body(&value)
    }

    /// Reads the value without waking anyone.
    public func read<R>(_ body: (borrowing Value) -> R) -> R {
        signal.lock()
        defer { signal.unlock() }
        return body(value)
    }

    /// Waits until `body` returns a result; nil after `ms` milliseconds (nil: waits without limit).
    public func wait<R>(ms: Double? = nil, _ body: (inout Value) -> R?) -> R? {
        signal.lock()
        defer { signal.unlock() }
        let deadline = ms.map { Instant.now().adding(ms: $0) }
        while true {
            if let result = body(&value) {
                signal.broadcast()
                return result
            }
            guard let deadline else {
                signal.wait()
                continue
            }
            if !signal.wait(until: deadline) {
                if let result = body(&value) {
                    signal.broadcast()
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
