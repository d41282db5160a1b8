import ApusFlow

/// Wire bytes of a page that is sent again.
struct AgainBytes {
    /// Of any of them, as it is and whole; of one that is written all the time, and of one that was not written for a while.
    var all: Double
    var whole: Double
    var hot: Double
    var fresh: Double

    /// Frame and record of a page beside its bytes, and of its changed lines.
    static let pageHeadBytes = 10.0
    private static let lineHeadBytes = 8.0

    init(all: Double) { (self.all, whole, hot, fresh) = (all, all, all, all) }

    /// nil: it wrote nothing.
    init?(_ watch: WriteWatch) {
        let kinds = [watch.hot, watch.fresh].compactMap(\.self)
        let pages = kinds.reduce(0) { $0 + $1.pages }
        guard pages > 0 else { return nil }
        func mean(_ value: (WrittenPages) -> Double) -> Double {
            kinds.reduce(0) { $0 + value($1) * Double($1.pages) } / Double(pages)
        }
        all = mean(Self.bytes)
        whole = mean(Self.wholeBytes)
        hot = watch.hot.map(Self.bytes) ?? all
        fresh = watch.fresh.map(Self.bytes) ?? all
    }

    private static func wholeBytes(_ pages: WrittenPages) -> Double { pages.wholeBytesPerPage + pageHeadBytes }
    private static func bytes(_ pages: WrittenPages) -> Double {
        let whole = wholeBytes(pages)
        return min(whole, pages.changedShare.map { $0 * whole + lineHeadBytes } ?? whole)
    }
}
