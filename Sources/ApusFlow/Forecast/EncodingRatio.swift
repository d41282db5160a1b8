internal import ApusMemory

/// Wire bytes per byte of guest memory, of late: what is sent again is encoded in another way than the first pass.
public struct EncodingRatio: Sendable {
    private var wireBytes: UInt64 = 0
    private var pages: UInt64 = 0
    private var samePages: UInt64 = 0
    /// Of all pages, and of those that had changed.
    private(set) var all = 1.0
    private(set) var changed = 1.0
    /// What a changed page takes was seen, of this guest.
    private var isKnown = false
    /// Fewer pages say too little.
    private static let pagesMin: UInt64 = 24

    /// - Parameter changedBytesPerPage: wire bytes of a page that had changed, as seen earlier; nil: not known.
    init(changedBytesPerPage: Double? = nil) {
        guard let changedBytesPerPage else { return }
        changed = min(Self.most, changedBytesPerPage / Double(Limits.pageBytes))
        isKnown = true
    }

    /// - Parameter isFirstPass: no page has come again yet. What is written again is seldom like the rest, which is all that tells of
    ///   it where nothing is known.
    mutating func take(_ flow: FlowSample, isFirstPass: Bool) {
        guard flow.dataPages >= pages + Self.pagesMin else { return }
        let latest = Self.of(
            wireBytes: flow.literalBytes - min(wireBytes, flow.literalBytes), pages: flow.dataPages - pages,
            samePages: flow.samePages - min(samePages, flow.samePages), changed: changed)
        all = latest.all
        if !isFirstPass || !isKnown { changed = latest.changed }
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
