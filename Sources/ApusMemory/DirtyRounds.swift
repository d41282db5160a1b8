/// What was written when: decides which dirty pages travel now and which are held back because they are written in
/// every round (hot). A page that is held back costs nothing however often it is written; it travels once it cools, or
/// at the switch.
///
/// ```
///   written in this round  1 1 0 0        hot   = now AND before, up to the limit     -> held
///   written in the last    1 0 1 0        ready = (now OR held) AND NOT hot           -> travels
/// ```
///
/// Memory: four bitmaps, 1/8192 of the RAM they describe.
public struct DirtyRounds: Sendable {
    /// Pages to send now.
    public private(set) var ready: PageSet
    /// Pages kept for later; the destination's copy of them is old.
    public private(set) var held: PageSet
    public private(set) var readyCount = 0
    public private(set) var heldCount = 0
    /// Pages that were held and have been written again in the last round.
    public private(set) var againCount = 0
    private var now: PageSet
    private var before: PageSet

    public init(pageCount: PageNumber) {
        ready = PageSet(pageCount: pageCount)
        held = ready
        now = ready
        before = ready
    }

    /// Pages written in the round that is being scanned.
    public mutating func insert(first: PageNumber, count: Int) { now.insert(first: first, count: count) }

    /// What was ready is not sent now: it counts as written in the round that comes.
    public mutating func putBack() {
        for index in 0..<now.wordCount { now[word: index] |= ready[word: index] }
    }

    /// Ends the scan of a round.
    ///
    /// - Parameter holdLimit: the most pages to hold back; 0: none, everything is ready.
    /// - Returns: pages that were written in this round.
    @discardableResult
    public mutating func close(holdLimit: Int) -> Int {
        var written = 0
        readyCount = 0
        heldCount = 0
        againCount = 0
        for index in 0..<now.wordCount {
            let word = now[word: index]
            written += word.nonzeroBitCount
            againCount += (word & held[word: index]).nonzeroBitCount
            var hot = word & before[word: index]
            if hot != 0 && heldCount + hot.nonzeroBitCount > holdLimit { hot = 0 }
            heldCount += hot.nonzeroBitCount
            let travels = (word | held[word: index]) & ~hot
            readyCount += travels.nonzeroBitCount
            ready[word: index] = travels
            held[word: index] = hot
            before[word: index] = word
            now[word: index] = 0
        }
        return written
    }
}
