public import ApusSystem

/// Where the 4096-byte blocks of one disk image are, by the hint of their content: raw and qcow2 alike are plain files
/// here, because a qcow2 file keeps its clusters aligned.
///
/// Immutable: lanes search it while a newer one is made. It may be stale at any time (a running guest writes to its
/// disk); the receiver proves every block before it installs it.
///
/// Takes 12 bytes a block, 31 MB for 10 GB of data; blocks of zeros and repeated ones take none.
public final class BlockIndex: Sendable {
    /// One in so many extents is indexed; above 1 the image is too large for the memory it may take.
    public let stride: Int
    /// Blocks that can be found.
    public let blocks: Int
    /// Extents that could not be read.
    public let unreadableExtents: Int
    private let table: HintTable

    init(_ table: consuming HintTable, stride: Int, unreadableExtents: Int) {
        blocks = table.count
        self.table = table
        self.stride = stride
        self.unreadableExtents = unreadableExtents
    }

    /// Memory that it takes.
    public var tableBytes: Int { blocks * HintTable.bytesPerEntry }

    /// The block that probably holds the page with this hint (`ContentKey.hint`), as its offset / 4096.
    @inline(__always)
    public func block(of hint: UInt64) -> UInt32? { table.find(hint) }
}

/// What to index, and at whose cost.
public struct IndexOrder: Sendable {
    public var image: String
    /// Where the index is kept between runs of the agent, and while it is being made.
    public var sidecar: String
    public var key: ContentKey
    /// Cap of the table's memory. A larger image is sampled: every nth MiB of it.
    public var tableBytesMax: Int
    /// Cap of what is read from the disk; what the page cache has is not counted. Nil: none.
    public var bytesPerS: Double?

    public init(
        image: String, sidecar: String, key: ContentKey, tableBytesMax: Int = 256 << 20, bytesPerS: Double? = nil
    ) {
        self.image = image
        self.sidecar = sidecar
        self.key = key
        self.tableBytesMax = tableBytesMax
        self.bytesPerS = bytesPerS
    }
}

/// How an index came about.
public enum IndexOrigin: Sendable, Equatable {
    /// The image is as it was when the sidecar was written.
    case loaded
    /// So many extents were known from an earlier run that did not reach the end.
    case resumed(extents: Int)
    case built(because: SidecarFault)
}

/// Why a sidecar is of no use, or not of full use.
public enum SidecarFault: Error, Sendable, Equatable, CustomStringConvertible {
    case missing
    case otherFormat(version: UInt32)
    case corrupt(String)
    case otherKey
    /// Another file is at the image's path.
    case otherImage
    /// The image was written to, or may have been.
    case imageChanged
    /// Made with another sampling.
    case otherStride
    case unreadable(SystemError)

    public var description: String {
        switch self {
        case .missing: "there was no index"
        case .otherFormat(let version): "the index has format \(version), not \(SidecarHead.version)"
        case .corrupt(let what): "the index is corrupt: \(what)"
        case .otherKey: "the index was made under another key"
        case .otherImage: "another file is at the image's path"
        case .imageChanged: "the image was written to"
        case .otherStride: "the index has another sampling"
        case .unreadable(let error): "the index cannot be read (\(error))"
        }
    }
}

public enum IndexError: Error, Sendable, Equatable, CustomStringConvertible {
    case image(path: String, SystemError)
    case notAFile(path: String)
    case sidecar(path: String, SystemError)
    case noMemory

    public var description: String {
        switch self {
        case .image(let path, let error): "The disk image \(path) cannot be read (\(error))."
        case .notAFile(let path): "The disk image \(path) is neither a file nor a block device."
        case .sidecar(let path, let error): "The index \(path) cannot be written (\(error))."
        case .noMemory: "There is no memory for the index; lower its cap."
        }
    }
}
