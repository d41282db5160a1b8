internal import ApusSystem

/// What must travel of a page.
public enum PageFate: Equatable, Sendable {
    /// All of it.
    case whole
    /// Nothing: the receiver has this content.
    case same
    /// The lines in the mask, onto the copy with this number.
    case lines(mask: UInt32, base: UInt8)
}

/// A hash for every line of every page that one lane has sent: what has changed since is known without a copy of the old
/// page. A sixteenth of the pages sent at 128 bytes a line; nothing for pages of zeros and pages never sent.
///
/// ```
///   page --> stripe of 64 pages --> [directory: u32] --> slot --> [hashes: 64 pages x 32 lines x u64]
///        `-> [ReplicaMap: u8]                            slots are given out in order of first use, up to the cap
/// ```
///
/// Two lines with the same hash would be taken for the same; for a guest that does not know the secret that is one
/// chance in 2^64 for each line compared.
public struct LineTable: ~Copyable, Sendable {
    public let lineBytes: Int
    private let lines: Int
    private let stripeBytes: Int
    private let slotsMax: Int
    private let share: LaneShare
    private let hasher: LineHasher
    private var replica: ReplicaMap
    private var directory = GrowingMemory()
    private var hashes = GrowingMemory()
    private var slots = 0

    /// - Parameters:
    ///   - lineBytes: a power of two from `Limits.lineBytesMin` to `Limits.lineBytesMax`.
    ///   - bytesMax: cap of the hashes' memory; pages beyond it always travel whole.
    public init(_ share: LaneShare, lineBytes: Int, bytesMax: Int) {
        precondition(lineBytes >= Limits.lineBytesMin && lineBytes <= Limits.lineBytesMax)
        precondition(lineBytes.nonzeroBitCount == 1)
        self.share = share
        self.lineBytes = lineBytes
        lines = Limits.pageBytes / lineBytes
        stripeBytes = LaneShare.stripePages * lines * LineHasher.hashBytes
        // A slot's number plus one has 32 bits.
        slotsMax = min(bytesMax / stripeBytes, Int(Int32.max))
        hasher = LineHasher(lineBytes: lineBytes)
        replica = ReplicaMap(share)
    }

    /// Bytes of hashes.
    public var byteCount: Int { slots * stripeBytes }

    /// Decides how a page of data travels; the table then knows it as sent.
    /// - Parameters:
    ///   - mayDrop: false when the page has to stay in its batch.
    ///   - mayPatch: the receiver can change parts of this page.
    public mutating func take(_ page: PageNumber, _ bytes: RawSpan, mayDrop: Bool, mayPatch: Bool) -> PageFate {
        let wasZero = replica.isZero(page)
        if bytes.isAllZero {
            if wasZero && mayDrop { return .same }
            setZero(first: page, count: 1)
            return .whole
        }
        guard let at = place(of: page) else {
            replica.forget(first: page, count: 1)
            return .whole
        }
        let base = replica.base(of: page)
        let mask: UInt32
        if wasZero {
            // Only what differs from zeros; the hashes of an older content are left in the table.
            mask = nonZeroLines(bytes)
            _ = hasher.renew(&hashes, at: at, with: bytes)
        } else {
            mask = hasher.renew(&hashes, at: at, with: bytes)
        }
        if mayDrop && base != ReplicaMap.absent {
            if mask == 0 { return .same }
            // Nearly whole pages gain little, and whole ones start the count anew.
            if mayPatch && base < ReplicaMap.basesMax && mask.nonzeroBitCount <= lines * 3 / 4 {
                replica.setUpdated(page)
                return .lines(mask: mask, base: base)
            }
        }
        replica.setWhole(first: page, count: 1)
        return .whole
    }

    /// Pages of zeros are sent.
    public mutating func setZero(first: PageNumber, count: Int) {
        replica.setWhole(first: first, count: count, isZero: true)
    }

    /// The page was sent before, and the receiver has it.
    public func knows(_ page: PageNumber) -> Bool { replica.base(of: page) != ReplicaMap.absent }

    /// Pages are sent without a look at them, or the receiver may not have what was sent.
    public mutating func forget(first: PageNumber, count: Int) { replica.forget(first: first, count: count) }

    /// Where the page's hashes are; nil when there is no room for them.
    private mutating func place(of page: PageNumber) -> Int? {
        let index = share.index(of: page)
        let stripe = index / LaneShare.stripePages
        guard directory.grow(toHold: (stripe + 1) * 4) else { return nil }
        var slot = Int(directory.bytes.littleEndian(at: stripe * 4, as: UInt32.self))
        if slot == 0 {
            guard slots < slotsMax, hashes.grow(toHold: (slots + 1) * stripeBytes) else { return nil }
            slots += 1
            slot = slots
            var entries = directory.mutableBytes
            entries.store(littleEndian: UInt32(slot), at: stripe * 4)
        }
        return (slot - 1) * stripeBytes + index % LaneShare.stripePages * lines * LineHasher.hashBytes
    }

    private func nonZeroLines(_ bytes: RawSpan) -> UInt32 {
        var mask: UInt32 = 0
        for line in 0..<lines where !bytes.extracting(line * lineBytes..<(line + 1) * lineBytes).isAllZero {
            mask |= 1 << UInt32(line)
        }
        return mask
    }
}
