/// Bounds for everything a peer can choose in a QEMU stream. Above them the reader throws
/// ``StreamError/limit(_:value:limit:)``.
public struct StreamLimits: Sendable, Equatable {
    /// Bytes of the machine type's name.
    public var machineNameBytes = 255
    /// Capabilities in the configuration.
    public var capabilities = 64
    /// RAM blocks of one VM.
    public var blocks = 1024
    /// Sum of the used lengths of all blocks, in bytes.
    public var ramBytes: UInt64 = 1 << 52
    /// Bytes of one chunk of a dirty bitmap. QEMU sends 1 KiB.
    public var bitmapChunkBytes: UInt64 = 1 << 16
    /// Bytes of one device section that stands before RAM, where its end has to be searched for.
    public var earlyDeviceBytes = 64 << 20
    /// Bytes of the JSON text at the end. QEMU's is some 100 KiB.
    public var vmDescriptionBytes: UInt32 = 64 << 20

    public init() {}

    /// Bytes of a page, on the wire and in the guest; other target page sizes are refused.
    public static let pageBytes = 4096
    /// zlib's own bound for the compressed form of one page.
    public static let compressedPageBytes = 4110
    /// With the default limits no element needs more bytes than this in one piece: a full block list.
    public static let elementBytesMax = 8 + 1024 * (1 + 255 + 8 + 8 + 8) + 8
}
