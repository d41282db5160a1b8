internal import ApusMemory
public import ApusSystem

/// Pages that lie one after the other elsewhere, and one proof of them all: whoever has the disk image or the snapshot reads
/// them, and takes all or none.
public struct ContentRun: Sendable, Equatable {
    /// Of the first page: its offset in the image / 4096, or its number in the snapshot.
    public let at: UInt32
    public let pages: Int
    public let digest: Digest

    /// - Parameter pages: 1 to `Limits.referencePages`.
    public init(at: UInt32, pages: Int, digest: Digest) {
        precondition((1...Limits.referencePages).contains(pages))
        self.at = at
        self.pages = pages
        self.digest = digest
    }

    /// Behind the last page: a peer may name one that 32 bits do not hold.
    var end: UInt64 { UInt64(at) + UInt64(pages) }
}
