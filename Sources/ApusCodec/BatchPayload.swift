public import ApusMemory
internal import ApusSystem

/// How a batch's squeezed body is compressed. Zero means that there is none.
public enum Codec: UInt8, Sendable, CaseIterable {
    case none = 0
    case lz4 = 1
    case zstd = 2
}

public enum PayloadError: Error, Equatable, Sendable {
    case short(want: Int, got: Int)
    case tooManyRecords(Int)
    case unknownCodec(UInt8)
    case unknownForm(UInt8)
    case unknownFlags(UInt8)
    case emptyRun
    case notAscending(page: PageNumber)
    case outsideMemory(page: UInt64)
    case acrossBlocks(page: PageNumber)
    case wrongLane(page: PageNumber)
    case tooManyPages(Int)
    case length(want: Int, got: Int)
    case corruptBody(Codec)
    case install(String)
    case lineBytes(shift: UInt8)
    case emptyUpdate(page: PageNumber)
    case outsidePage(page: PageNumber, mask: UInt32)
    case notPatchable(page: PageNumber)
    /// An update that builds on another content than the receiver's: it is late, or the page was never sent.
    case stale(page: PageNumber, base: UInt8, own: UInt8)
}

/// The bytes of one batch on the wire; integers little-endian.
///
/// ```
///   0  u16  records            at most 128
///   2  u8   codec of the squeezed body: 0 none, 1 LZ4 block, 2 zstd stream
///   3  u8   flags: bit 0 = the zstd stream starts anew
///   4  u32  bytes of the squeezed body
///   8  records x 8:  u32 first page, u16 pages, u8 form, u8 zero
///      squeezed body: the pages of all squeezed records, in order
///      raw body: the pages of all raw records, in order
/// ```
public enum BatchPayload {
    public static let headBytes = 8
    public static let recordBytes = 8
    public static let restartFlag: UInt8 = 1
    /// Worst case of both codecs for 64 pages that do not compress.
    public static let squeezedBytesMax = Limits.batchPages * Limits.pageBytes + (16 << 10)
    /// Everything before the raw body.
    public static let headCapacity = headBytes + Limits.batchRecords * recordBytes + squeezedBytesMax
    public static let bytesMax = headCapacity + Limits.batchPages * Limits.pageBytes
}
