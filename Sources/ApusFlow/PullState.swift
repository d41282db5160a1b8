internal import ApusMemory
internal import ApusSystem

/// Why a page comes.
enum PullWay: Equatable {
    case asked
    case pushed(isForeseen: Bool)
}

/// Between these an agent may end, and its successor must find a state that it can go on from.
public enum PullStep: Sendable {
    /// Touches of missing pages are told, and nothing is missing yet.
    case armed
    /// Pushed pages are in the file; they still count as missing.
    case filled
    /// They are no longer missing; who waits for one has not been woken.
    case settled
}

/// What a ``PullDestination`` knows at one moment.
struct PullState: Sendable {
    struct Waiting: Sendable {
        let page: PageNumber
        let since: Instant
    }
    /// nil: the flip has not come.
    var residence: Residence?
    /// nil: what the guest uses of them cannot be told.
    var pushed: PushedPages?
    /// Where pushed pages go then, one for each block.
    var fillers: [FileFiller] = []
    var waiting: [Waiting] = []
    var counts = PullCounts()
    var flipped = Instant.now()
    var isOver = false
    var saidWhole = false

    /// These pages are here.
    mutating func settle(
        _ first: PageNumber, _ count: Int, _ way: PullWay, _ waited: (UInt64) -> Void,
        _ changed: (Int, UInt64) -> Void
    ) {
        if case .pushed(let isForeseen) = way {
            // Not what was asked for and has come in the same moment.
            for page in first..<first + PageNumber(count) where residence?.home(of: page) == .source {
                pushed?.came(first: page, count: 1, isForeseen: isForeseen)
            }
        }
        let settled = UInt64(residence?.settle(first: first, count: count, changed) ?? 0)
        if case .pushed = way {
            counts.pushedPages += settled
        } else {
            counts.faultedPages += settled
        }
        answer(first, count, waited)
    }

    /// Whoever waited for one of these pages goes on.
    private mutating func answer(_ first: PageNumber, _ count: Int, _ waited: (UInt64) -> Void) {
        guard !waiting.isEmpty else { return }
        // Not before: while somebody waits to change this value another may have begun to wait for the page.
        let now = Instant.now()
        for wait in waiting where wait.page >= first && wait.page < first + PageNumber(count) {
            waited(now.ns - wait.since.ns)
            pushed?.wasLate(wait.page)
        }
        waiting.removeAll { $0.page >= first && $0.page < first + PageNumber(count) }
    }
}
