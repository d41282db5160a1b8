import ApusContent
import ApusFabric
import ApusMemory
import ApusSystem
import ApusWire
import Synchronization

/// Puts together what a destination says that it holds, frame by frame, on the link's thread.
final class PeerPagesInbox: Sendable {
    private let pages = Mutex<PeerPages?>(nil)
    private let pageCountMax: PageNumber

    /// - Parameter ramBytes: of the VM. A snapshot has a little more pages, of its firmware.
    init(ramBytes: UInt64) {
        pageCountMax = PageNumber(
            clamping: min(ramBytes / UInt64(Limits.pageBytes) * 2 + 65536, UInt64(Limits.snapshotPages)))
    }

    /// What makes no sense is left out: these are hints, and every one of them is proved before it counts.
    func take(_ frame: ControlLink.Message) {
        guard frame.kind == .held, let head = try? HeldPayload.head(frame.bytes.rawBytes),
            head.pageCount <= pageCountMax
        else { return }
        pages.withLock { pages in
            if pages == nil { pages = PeerPages(pageCount: head.pageCount) }
            guard var known = pages.take() else { return }
            if known.pageCount == head.pageCount {
                for index in 0..<head.count {
                    known.set(head.first + PageNumber(index), HeldPayload.hint(frame.bytes.rawBytes, at: index))
                }
            }
            pages = consume known
        }
    }

    /// All that was said; nil: nothing.
    func takePages() -> PeerPages? { pages.withLock { $0.take() } }
}
