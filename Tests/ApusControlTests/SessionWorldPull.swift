//  Pages that stay at the source of a session world when its guest moves, and how they follow it.
//
//     source RAM  [0 1 2 3]   ==== 1 ====>   destination   residence: 2 3 missing, 0 1 here; pager inside QEMU
//
//  Each page has one home at any time (`Residence`). The source's pages exist as long as its QEMU lives, or an agent holds
//  its RAM; the destination's guest waits where it touches a missing page as long as the pager is inside its QEMU.

import ApusControl
import ApusFlow
import ApusMemory

struct PullModel {
    static let pages: PageNumber = 4
    /// The job's mode.
    let isWanted: Bool
    /// The truth, in the destination's file; whole before the flip.
    var residence = Residence(missing: PageSet(pageCount: pages))
    var isPagerInside = false
    /// B's present agent reads the pager.
    var isWatchedByB = false
    /// A's present agent has the guest's RAM mapped.
    var isHeldByA = false
    /// The connection that pages travel on; 0: none.
    var service = 0
    /// What A has still to send on it.
    var toSend: [PageNumber] = []
}

extension World {
    /// The end of the stream has come, and with it the list of what is missing.
    mutating func flip() {
        guard pull.isWanted else { return }
        var missing = PageSet(pageCount: PullModel.pages)
        missing.insert(first: 0, count: Int(PullModel.pages))
        pull.residence = Residence(missing: missing)
        pull.isPagerInside = sabotage != .pagerLeavesBeforeWhole
        pull.isWatchedByB = true
    }

    mutating func serve() {
        guard linkUp else { return }
        if !pull.isHeldByA {
            switch source {
            case .ended, .killed: return tellA(.serviceImpossible(.init("pages-lost", "Its QEMU has gone.")))
            case .idle, .active, .waiting, .answered, .failing, .handedOver: pull.isHeldByA = true
            }
        }
        // Its connections stand.
        if pull.service == connection { return }
        pull.service = connection
        pull.toSend = (0..<PullModel.pages).filter { pull.residence.home(of: $0) == .source }
        if collectsMarks { marks.insert("served") }
    }

    /// What is on the connections for pages is gone with them.
    mutating func holdService() {
        pull.service = 0
        toB.removeAll { if case .page = $0 { true } else { false } }
    }

    mutating func sendPage() { toB.append(.page(pull.toSend.removeFirst())) }

    mutating func installPage(_ page: PageNumber) throws {
        guard pull.residence.home(of: page) == .source else { throw Violation(text: "page \(page) came twice") }
        // Without the agent nobody receives; without the guest there is nothing to fill.
        guard pull.isWatchedByB, bAlive else { return }
        pull.residence.settle(first: page, count: 1)
        leavePager()
    }

    private mutating func leavePager() {
        guard pull.isPagerInside, pull.residence.isWhole else { return }
        pull.isPagerInside = false
        if collectsMarks { marks.insert("whole") }
        tellB(.becameWhole(.init()))
    }

    mutating func resumePull() {
        guard pull.isPagerInside else { return tellB(.becameWhole(.init())) }
        pull.isWatchedByB = true
        leavePager()
    }

    func withPull(_ report: ResumeReport) -> ResumeReport {
        var report = report
        if pull.isPagerInside, sabotage != .destinationCompletesBeforeWhole { report.pullToken = "token" }
        return report
    }

    /// Nothing of the source's RAM is left.
    var pagesAreGone: Bool { !pull.residence.isWhole && !pull.isHeldByA && (source == .ended || source == .killed) }

    func checkPull() throws {
        let isAlive = if case .loaded = destination { true } else { destination == .running }
        guard isAlive, !pull.residence.isWhole else { return }
        if !pull.isPagerInside { throw Violation(text: "the pager is out, and pages are missing") }
        if case .completed = bRecord?.stage { throw Violation(text: "completed, and pages are missing") }
        if aRecord?.stage == .completed { throw Violation(text: "the source is completed, and pages are missing") }
    }
}
