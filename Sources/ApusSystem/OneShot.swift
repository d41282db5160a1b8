/// Hands a move-only value to a thread: a closure cannot consume what it captures, so it takes it out of this box.
public final class OneShot<Value: ~Copyable & Sendable>: Sendable {
    private let queue = BoundedQueue<Value>(capacity: 1)
    public init(_ value: consuming Value) { _ = queue.send(value) }
    /// Nil the second time.
    public func take() -> Value? { queue.receiveIfAny() }
}

/// Blocks the calling thread.
public func pause(ms: Double) { _ = Latch().wait(ms: ms) }

extension RawSpan {
    /// The bytes as an array of their own; for the control plane, never per page.
    public var bytesCopied: [UInt8] {
        unsafe withUnsafeBytes { unsafe Array($0) }
    }
}
