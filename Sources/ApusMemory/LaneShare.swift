/// Which lane a page travels on: always the same one, so that its versions stay in order.
///
/// Stripes of 64 pages keep runs together, and give every word of a ``PageSet`` to one lane.
@inlinable
public func laneIndex(of page: PageNumber, lanes: Int) -> Int { Int(page >> 6) % lanes }

/// The pages of one lane, numbered without gaps.
///
/// ```
///   page          0 .. 63 | 64 .. 127 | 128 .. 191 | 192 .. 255      with 2 lanes
///   lane             0    |     1     |      0     |      1
///   index in lane 0 .. 63 |  0 .. 63  |  64 .. 127 |  64 .. 127
/// ```
public struct LaneShare: Sendable, Equatable {
    public let lane: Int
    public let lanes: Int
    public static let stripePages = 64

    public init(lane: Int, lanes: Int) {
        precondition(lane >= 0 && lane < lanes && lanes <= Limits.lanes)
        self.lane = lane
        self.lanes = lanes
    }

    @inline(__always)
    public func owns(_ page: PageNumber) -> Bool { laneIndex(of: page, lanes: lanes) == lane }

    /// Traps for a page of another lane.
    @inline(__always)
    public func index(of page: PageNumber) -> Int {
        precondition(owns(page))
        return Int(page >> 6) / lanes * Self.stripePages + Int(page) % Self.stripePages
    }
}
