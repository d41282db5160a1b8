internal import ApusMemory

/// Every bound of the content indexes and stores, with its reason.
public enum ContentLimits {
    /// What is read at once while a disk is indexed, and the unit in which its index is kept: long enough for a disk to
    /// be fast, short enough to stop soon.
    public static let extentBytes = 1 << 20
    static let extentBlocks = extentBytes / Limits.pageBytes
    /// Block numbers are 32 bits wide: 16 TiB.
    public static let imageBytesMax = UInt64(UInt32.max) * UInt64(Limits.pageBytes)
    /// A write may leave a file's time as it is when it comes so soon after another: clocks of file systems tick coarsely,
    /// and network file systems keep times for a while.
    static let stampTrustNs: UInt64 = 2_000_000_000

    /// Bytes of one segment of a store: few files even for a terabyte, and little to copy when one is half empty.
    public static let segmentBytes = 64 << 20
    /// Pages compressed together: 64 KiB squeezes nearly as well as more, and one page is read at the cost of sixteen.
    static let chunkPages = 16
    /// Of a VM's memory, what is not its RAM: firmware and the memory of devices.
    static let firmwareBytesMax: UInt64 = 64 << 20
    /// Segments of one store: their numbers have 24 bits where a page's place is kept.
    static let segmentNumberMax: UInt32 = 1 << 24 - 1
    /// Of a segment's pages, what must be in use; with less, they are copied and the segment is given back.
    static let segmentUseMin = 0.5
    /// The same before a snapshot has to go for want of room.
    static let segmentUseMax = 0.9
}
