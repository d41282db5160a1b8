internal import ApusSystem

/// Finds a 32-bit value by a 64-bit hint, in 12 bytes an entry: open addressing, at most two thirds full.
///
/// ```
///   hint   [ upper 32 bits: where to begin ][ lower 32 bits: tag ]
///   entry  [ value + 1: u32 ][ tag: u32 ]           0: free
/// ```
///
/// What is found is a guess: another hint with the same tag in the same neighbourhood is taken for this one, once in a
/// thousand million look-ups. Any number of threads may search while nobody inserts.
public struct HintTable: ~Copyable, Sendable {
    public static let entryBytes = 8
    /// Bytes of table for each entry it can hold.
    public static let bytesPerEntry = entryBytes * 3 / 2
    /// Values are stored plus one.
    public static let valueMax = UInt32.max - 1

    public let entriesMax: Int
    public private(set) var count = 0
    private let places: UInt64
    private var memory = GrowingMemory()

    /// Nil: the kernel has no room for it. Only the parts that are used take memory.
    public init?(entriesMax: Int) {
        precondition(entriesMax >= 0 && entriesMax <= Int(UInt32.max / 2))
        self.entriesMax = entriesMax
        places = UInt64(max(16, entriesMax * 3 / 2))
        guard memory.grow(toHold: Int(places) * Self.entryBytes) else { return nil }
    }

    /// The value first inserted with this hint; nil: there is none.
    @inline(__always)
    public func find(_ hint: UInt64) -> UInt32? {
        let bytes = memory.bytes
        var place = firstPlace(hint)
        while true {
            let entry: UInt64 = bytes.littleEndian(at: place * Self.entryBytes)
            if entry == 0 { return nil }
            if UInt32(truncatingIfNeeded: entry) == UInt32(truncatingIfNeeded: hint) {
                return UInt32(truncatingIfNeeded: entry >> 32) - 1
            }
            place = next(place)
        }
    }

    /// False when the hint is there already, or the table is full; what was there stays.
    public mutating func insert(_ hint: UInt64, _ value: UInt32) -> Bool {
        let (place, isTaken) = place(of: hint)
        guard !isTaken, count < entriesMax else { return false }
        store(hint, value, at: place)
        count += 1
        return true
    }

    /// As ``insert(_:_:)``, but the new value takes the place of what was there. False: the table is full.
    public mutating func replace(_ hint: UInt64, _ value: UInt32) -> Bool {
        let (place, isTaken) = place(of: hint)
        guard isTaken else { return insert(hint, value) }
        store(hint, value, at: place)
        return true
    }

    private mutating func store(_ hint: UInt64, _ value: UInt32, at place: Int) {
        precondition(value <= Self.valueMax)
        var bytes = memory.mutableBytes
        let tag = UInt64(UInt32(truncatingIfNeeded: hint))
        bytes.store(littleEndian: UInt64(value + 1) << 32 | tag, at: place * Self.entryBytes)
    }

    /// Where the hint is, or would be.
    private func place(of hint: UInt64) -> (place: Int, isTaken: Bool) {
        let bytes = memory.bytes
        var place = firstPlace(hint)
        while true {
            let entry: UInt64 = bytes.littleEndian(at: place * Self.entryBytes)
            if entry == 0 { return (place, false) }
            if UInt32(truncatingIfNeeded: entry) == UInt32(truncatingIfNeeded: hint) { return (place, true) }
            place = next(place)
        }
    }

    /// The upper half, stretched over the places: no division, and any number of places.
    @inline(__always)
    private func firstPlace(_ hint: UInt64) -> Int { Int(((hint >> 32) &* places) >> 32) }

    @inline(__always)
    private func next(_ place: Int) -> Int { place + 1 == Int(places) ? 0 : place + 1 }
}
