/// How many hot pages may be held back. Measured, not guessed.
///
/// A page that is written again while it is held has saved its former content's way. One that is not would have been at the
/// destination, and now prolongs the pause. So pages expected to be cold are kept to `hit` times ``coldShare`` of what the
/// pause can carry. Where nothing is written again there is almost no room left, and only the measurement goes on.
public struct HoldRoom: Sendable {
    /// Share of the pages held that are written again in the next round, of late.
    private var hit = 0.5

    /// Share of the pages that the allowed pause can carry which may be held, however hot.
    public static let pauseShare = 0.25
    /// Share of them that may be held and turn out cold.
    public static let coldShare = 0.02
    /// Held even where it seems not to pay: so that it is noticed when it does.
    public static let probePages = 16

    public init() {}

    /// A round has passed.
    ///
    /// - Parameters:
    ///   - again: pages that were written again in it,
    ///   - held: of so many that were held when it began.
    public mutating func measured(again: Int, of held: Int) {
        if held > 0 { hit = (hit + Double(again) / Double(held)) / 2 }
    }

    /// - Parameter pausePages: pages that the link carries in the longest allowed pause.
    public func pages(pausePages: Double) -> Int {
        let pays = Int(pausePages * Self.coldShare * hit / max(coldRate, 0.02))
        return min(max(pays, Self.probePages), Int(pausePages * Self.pauseShare))
    }

    /// Share of the pages held that prolong the pause if the guest is stopped now. A page does not if it is written in this
    /// round, and once more between its visit and the stop.
    public var coldRate: Double { 1 - hit * hit }
}
