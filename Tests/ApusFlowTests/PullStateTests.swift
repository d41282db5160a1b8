import ApusMemory
import Testing

@testable import ApusFlow

/// What is known of pages that follow the guest.
struct PullStateTests {
    /// Two threads may install one page in the same moment; it came by one way.
    @Test func aPageComesOnce() {
        var missing = PageSet(pageCount: 64)
        missing.insert(first: 0, count: 4)
        var state = PullState()
        state.residence = Residence(missing: missing)
        state.pushed = PushedPages(pageCount: 64)
        state.settle(1, 1, .asked, { _ in }, { _, _ in })
        state.settle(0, 4, .pushed(isForeseen: true), { _ in }, { _, _ in })
        #expect(state.counts.pushedPages == 3 && state.counts.faultedPages == 1)
        #expect(state.pushed?.use(missing).foreseenPages == 3)
    }
}
