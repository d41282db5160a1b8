internal import ApusMemory

/// Wire bytes per byte of guest memory, of late: what is sent again is encoded in another way than the first pass.
public struct EncodingRatio: Sendable {
    private var wireBytes: UInt64 = 0
    private var pages: UInt64 = 0
    private var samePages: UInt64 = 0
    /// Of all pages, and of those that had changed.
    private(set) var all = 1.0
    private(set) var changed = 1.0
    /// Fewer pages say too little.
    private static let pagesMin: UInt64 = 64

    mutating func take(_ flow: FlowSample) {
        guard flow.dataPages >= pages + Self.pagesMin else { return }
        (all, changed) = Self.of(
            wireBytes: flow.literalBytes - min(wireBytes, flow.literalBytes), pages: flow.dataPages - pages,
            samePages: flow.samePages - min(samePages, flow.samePages), changed: changed)
        (wireBytes, pages, samePages) = (flow.literalBytes, flow.dataPages, flow.samePages)
    }

    /// - Parameters:
    ///   - pages: more than none.
    ///   - samePages: of these, found not to have changed.
    ///   - changed: where all are.
    public static func of(
        wireBytes: UInt64, pages: UInt64, samePages: UInt64, changed: Double = 1
    ) -> (all: Double, changed: Double) {
        func ratio(_ pages: UInt64) -> Double {
            min(most, Double(wireBytes) / Double(pages * UInt64(Limits.pageBytes)))
        }
        return (ratio(pages), samePages < pages ? ratio(pages - samePages) : changed)
    }
    /// Of pages that nothing makes smaller, with their frames.
    private static var most: Double { 1.1 }
}
