import ApusMemory
import Testing

@Suite struct PushedPagesTests {
    private func set(_ pages: [PageNumber]) -> PageSet {
        var set = PageSet(pageCount: 128)
        for page in pages { set.insert(first: page, count: 1) }
        return set
    }

    @Test func whatWasUsedIsTold() {
        var pages = PushedPages(pageCount: 128)
        #expect(pages.use(set([1])) == PushUse(usedPages: 0, foreseenPages: 0, foreseenUsedPages: 0))
        pages.came(first: 0, count: 4, isForeseen: true)
        pages.came(first: 62, count: 4, isForeseen: false)
        #expect(
            pages.use(set([0, 3, 63, 100])) == PushUse(usedPages: 3, foreseenPages: 4, foreseenUsedPages: 2),
            "page 100 did not come by itself")
    }

    /// It was rightly foreseen, but not in time.
    @Test func whatSomebodyWaitedForWasNotInTime() {
        var pages = PushedPages(pageCount: 128)
        pages.came(first: 0, count: 4, isForeseen: true)
        pages.wasLate(2)
        #expect(pages.use(set([2, 3])) == PushUse(usedPages: 1, foreseenPages: 4, foreseenUsedPages: 2))
    }
}
