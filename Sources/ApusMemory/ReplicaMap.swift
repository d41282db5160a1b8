internal import ApusSystem

/// What the two ends of a lane agree on about each of its pages: how the receiver's copy came about. Each end keeps its
/// own; as a lane keeps its order, they are the same at the same frame. One byte a page, and memory only where pages are.
///
/// ```
///   absent --- whole page ---> 1 --- update ---> 2 --- update ---> ... 127, then only a whole page
///      ^                       ^                 |
///      |                       `--- whole page --'
///      `--- forget: the copy is not known any more, so only a whole page may follow
/// ```
///
/// An update names the number it builds on, and the receiver takes it only when that is its own: an update that is late,
/// comes twice or belongs to a page never sent changes nothing.
public struct ReplicaMap: ~Copyable, Sendable {
    /// Of a page that the receiver does not hold.
    public static let absent: UInt8 = 0
    /// The number after which only a whole page helps.
    public static let basesMax: UInt8 = 127
    private static let zeroFlag: UInt8 = 128

    public let share: LaneShare
    private var states = GrowingMemory()

    public init(_ share: LaneShare) { self.share = share }

    /// 0: absent; 1: whole page; more: so many updates less one came after it.
    @inline(__always)
    public func base(of page: PageNumber) -> UInt8 { state(share.index(of: page)) & ~Self.zeroFlag }

    /// The copy is known to be all zeros.
    @inline(__always)
    public func isZero(_ page: PageNumber) -> Bool { state(share.index(of: page)) & Self.zeroFlag != 0 }

    /// Whole pages were sent, or installed. When there is no memory to note that, they stay absent, which is safe.
    public mutating func setWhole(first: PageNumber, count: Int, isZero: Bool = false) {
        let index = share.index(of: first)
        guard states.grow(toHold: index + count) else { return }
        states.fill(isZero ? Self.zeroFlag | 1 : 1, at: index, count: count)
    }

    /// One more update; traps for an absent page, and behind the last number.
    public mutating func setUpdated(_ page: PageNumber) {
        let next = base(of: page) + 1
        precondition(next > 1 && next <= Self.basesMax)
        states.fill(next, at: share.index(of: page), count: 1)
    }

    public mutating func forget(first: PageNumber, count: Int) {
        let index = share.index(of: first)
        let known = min(count, states.byteCount - index)
        if known > 0 { states.fill(Self.absent, at: index, count: known) }
    }

    @inline(__always)
    private func state(_ index: Int) -> UInt8 {
        index < states.byteCount ? states.bytes.byte(at: index) : Self.absent
    }
}
