public import ApusContent
internal import ApusMemory
public import ApusSystem
internal import Synchronization

/// Where a source looks for the content of its pages. Its lanes share it, and only read.
///
/// ```
///   page -- hint --> snapshot that the destination holds: the same page, else any other    place 0
///             `----> disk images that both hosts read, one after the other                 place 1, 2, ...
/// ```
public final class SourceReferences: Sendable {
    /// The destination's: proofs, and hints of its snapshot.
    let key: ContentKey
    private let indexKey: ContentKey
    private let images: [BlockIndex]
    private let snapshot: PeerPages?
    private let closed = Atomic(false)

    /// - Parameters:
    ///   - key: the destination's.
    ///   - images: in the order agreed on, with hints under `indexKey`.
    public init(
        key: ContentKey, images: [BlockIndex], indexKey: ContentKey, snapshot: consuming PeerPages? = nil
    ) {
        self.key = key
        self.images = images
        self.indexKey = indexKey
        self.snapshot = snapshot
    }

    /// From now on pages travel as they are: the switch must not wait for a disk.
    func close() { closed.store(true, ordering: .relaxed) }
    var isClosed: Bool { closed.load(ordering: .relaxed) }

    /// Where the page's content probably is.
    func find(
        _ bytes: RawSpan, _ page: PageNumber, inSnapshot: Bool, onDisk: Bool
    ) -> (place: UInt8, at: UInt32)? {
        if inSnapshot, let at = snapshot?.find(key.hint(of: bytes), at: page) { return (0, at) }
        guard onDisk, !images.isEmpty else { return nil }
        let hint = indexKey.hint(of: bytes)
        for (number, image) in images.enumerated() {
            if let block = image.block(of: hint) { return (UInt8(number + 1), block) }
        }
        return nil
    }
}

/// Where a destination reads the content that it is referred to. Its lanes share it.
public final class DestinationReferences: Sendable {
    let key: ContentKey
    /// Nil: this one was not agreed on, and all of it is refused.
    let images: [Descriptor?]
    let snapshot: Snapshot?

    public init(key: ContentKey, images: [Descriptor?], snapshot: Snapshot?) {
        precondition(images.count <= Limits.images)
        self.key = key
        self.images = images
        self.snapshot = snapshot
    }
}

/// How many of a batch's pages are looked for elsewhere: all while that finds some; one in eight while it does not, and all
/// again from the batch on in which one of those is found. A hint takes 0.2 µs, which is nothing on a slow link and a tenth
/// of the time of a fast one.
///
/// ```
///          a window with hardly a hit
///   step 1 --------------------------> step 8 -- a batch with a hit --> step 1
/// ```
struct LookupPace: Sendable, Equatable {
    static let windowPages = 256
    static let hitShareMin = 1.0 / 64
    static let sparseStep = 8

    private var looked = 0
    private var found = 0
    /// One page in so many is looked for.
    private(set) var step = 1

    /// - Parameter hits: pages of a batch that were found.
    mutating func looked(pages: Int, found hits: Int) {
        looked += pages
        found += hits
        guard looked >= Self.windowPages || step > 1 else { return }
        step = Double(found) < Double(looked) * Self.hitShareMin ? Self.sparseStep : 1
        (looked, found) = (0, 0)
    }
}
