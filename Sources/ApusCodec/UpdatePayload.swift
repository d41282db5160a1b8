internal import ApusMemory

/// The bytes of one update frame on the wire: changed lines of pages that the receiver has. Integers little-endian.
///
/// ```
///   0  u16  entries           ascending pages, each once
///   2  u8   codec of the lines: 0 none, 1 LZ4 block, 2 zstd stream (one of its own, beside that of the batches)
///   3  u8   flags: bit 0 = the zstd stream starts anew
///   4  u8   bytes of a line, as a power of two: 7 to 11
///   5  3 zero bytes
///   8  u32  bytes of the squeezed lines; 0 with codec none
///  12  entries x 9:  u32 page, u32 mask (bit n: line n is here), u8 base (see `ReplicaMap`)
///      the lines of all entries, in order, squeezed or not
/// ```
public enum UpdatePayload {
    public static let headBytes = 12
    public static let entryBytes = 9
    /// Worst case of both codecs for lines that do not compress.
    public static let squeezedBytesMax = Limits.updateBytesMax + (16 << 10)
    /// Everything before lines that are not squeezed.
    public static let headCapacity = headBytes + Limits.updatePages * entryBytes + squeezedBytesMax
    /// Only one of the two bodies is ever there, and the squeezed one is the longer.
    public static let bytesMax = headCapacity
}
