/// Why a QEMU stream or return path could not be read: the peer's fault or a feature Apus does not carry, never a
/// local bug.
public enum StreamError: Error, Sendable, Equatable {
    /// The first four bytes are not "QEVM".
    case notMigrationStream(magic: UInt32)
    case unsupportedVersion(UInt32)
    /// The header's configuration section is missing (very old machine types).
    case missingConfiguration(marker: UInt8)
    case unknownConfiguration(name: String, version: UInt32)
    case unknownCapability(name: String)
    case unsupportedPageBits(UInt32)
    /// The stream belongs in a file with fixed positions, not on a connection.
    case mappedRam

    /// A type byte that may not stand here.
    case unexpectedElement(type: UInt8)
    case unknownSectionId(UInt32)
    case sectionIdInUse(UInt32)
    /// A section with iterations that has no length and that Apus has no parser for.
    case unsupportedSection(name: String)
    case unsupportedSectionVersion(name: String, version: UInt32, instance: UInt32)
    /// RAM or dirty bitmaps as a FULL section; QEMU never writes that.
    case iterableAsDevice(name: String)
    case wrongFooter(type: UInt8, id: UInt32, expected: UInt32)

    /// A name with bytes outside printable ASCII, or an empty one.
    case badName
    case unknownBlock(name: String)
    case duplicateBlock(name: String)
    case emptyBlockList
    case repeatedBlockList
    case missingBlockList
    /// The used lengths do not add up to the announced total.
    case blockListMismatch(left: UInt64, length: UInt64)
    case unalignedBlock(length: UInt64)
    case badBlockPageSize(UInt64)
    /// CONTINUE, or a request without a name, before any named block.
    case noPreviousBlock
    case outsideBlock(block: Int, offset: UInt64, length: UInt64)
    /// Zero or several kinds in one record, or a kind that is not carried (FULL, HOOK of RDMA).
    case unsupportedRecord(flags: UInt64)
    case nonZeroFill(UInt8)
    case badXbzrleHeader(encoding: UInt8, length: Int)
    case badCompressedLength(UInt32)
    case unsupportedBitmapChunk(flags: UInt8)

    case wrongCommandLength(command: UInt16, length: Int)
    case badDiscard(version: UInt8, terminator: UInt8)
    case coloRequested
    case nestedPackage
    /// An element reaches beyond the end of the package it is in.
    case crossesPackage(left: Int)
    /// A named bound of ``StreamLimits`` was exceeded.
    case limit(String, value: UInt64, limit: UInt64)
    case bytesAfterEnd
    /// The connection ended inside the stream.
    case truncated(position: UInt64)

    case unknownReturnMessage(type: UInt16)
    case wrongReturnLength(type: UInt16, length: Int)
    case unalignedRequest(start: UInt64, length: UInt64)
    case wrongBitmapSize(block: Int, size: UInt64, expected: UInt64)
    case wrongBitmapEnd(UInt64)
    case badReturnValue(type: UInt16, value: UInt32)
}

extension StreamError: CustomStringConvertible {
    public var description: String {
        switch self {
        case .notMigrationStream(let magic):
            "Not a QEMU migration stream (first bytes 0x\(String(magic, radix: 16)))"
        case .unsupportedVersion(let version): "QEMU stream version \(version), only 3 is known"
        case .missingConfiguration:
            "QEMU stream without a configuration section; use a machine type of QEMU 2.4 or later"
        case .unknownConfiguration(let name, let version): "Unknown configuration \"\(name)\" version \(version)"
        case .unknownCapability(let name):
            "The source announces capability \"\(name)\", which Apus does not carry; switch it off"
        case .unsupportedPageBits(let bits): "Guest pages of 2^\(bits) bytes; Apus carries 4 KiB pages only"
        case .mappedRam: "The source has mapped-ram on, which is for files; switch the capability off"
        case .unsupportedSection(let name): Self.describe(section: name)
        case .unsupportedSectionVersion(let name, let version, let instance):
            "Section \"\(name)\" in version \(version), instance \(instance), is not known"
        case .iterableAsDevice(let name): "Section \"\(name)\" came as device state"
        case .coloRequested: "The source wants COLO, which Apus does not carry; switch x-colo off"
        case .unsupportedRecord(let flags):
            flags & 0x80 != 0
                ? "The source wants RDMA, which Apus does not carry; use a tcp or unix URI"
                : "RAM record with flags 0x\(String(flags, radix: 16)) is not known"
        case .limit(let what, let value, let limit): "\(what): \(value) is above the limit of \(limit)"
        case .truncated(let position): "The connection ended inside the stream, after \(position) bytes"
        case .unexpectedElement(let type): "Element type 0x\(hex(type)) may not stand here"
        case .unknownSectionId(let id): "Section \(id) was never started"
        case .sectionIdInUse(let id): "Section \(id) was started twice"
        case .wrongFooter(let type, let id, let expected):
            "Section footer 0x\(hex(type)) \(id) instead of 0x7e \(expected)"
        case .badName: "A name is empty or not printable ASCII"
        case .unknownBlock(let name): "RAM block \"\(name)\" is not in the block list"
        case .duplicateBlock(let name): "RAM block \"\(name)\" is twice in the block list"
        case .emptyBlockList: "A RAM block list without blocks"
        case .repeatedBlockList: "A second RAM block list"
        case .missingBlockList: "RAM records before the RAM block list"
        case .blockListMismatch(let left, let length):
            "RAM block of \(length) bytes where the announced total leaves \(left)"
        case .unalignedBlock(let length): "RAM block of \(length) bytes is not a whole number of pages"
        case .badBlockPageSize(let size): "RAM block with pages of \(size) bytes"
        case .noPreviousBlock: "A record refers to the previous RAM block, but there is none"
        case .outsideBlock(let block, let offset, let length):
            "\(length) bytes at \(offset) are not within RAM block \(block)"
        case .nonZeroFill(let fill): "Page filled with 0x\(hex(fill)); only zero is known"
        case .badXbzrleHeader(let encoding, let length): "XBZRLE page with encoding \(encoding) and length \(length)"
        case .badCompressedLength(let length): "Compressed page of \(length) bytes"
        case .unsupportedBitmapChunk(let flags): "Dirty-bitmap chunk with flags 0x\(hex(flags)) is not known"
        case .wrongCommandLength(let command, let length): "Command \(command) with a payload of \(length) bytes"
        case .badDiscard(let version, let terminator): "Discard command of version \(version), terminator \(terminator)"
        case .nestedPackage: "A package within a package"
        case .crossesPackage(let left): "An element reaches beyond its package, which has \(left) bytes left"
        case .bytesAfterEnd: "Bytes after the end of the stream"
        case .unknownReturnMessage(let type): "Return path message \(type) is not known"
        case .wrongReturnLength(let type, let length): "Return path message \(type) with a payload of \(length) bytes"
        case .unalignedRequest(let start, let length):
            "Page request for \(length) bytes at \(start) is not page aligned"
        case .wrongBitmapSize(let block, let size, let expected):
            "Bitmap of \(size) bytes for RAM block \(block), which needs \(expected)"
        case .wrongBitmapEnd(let mark): "Bitmap ends with 0x\(hex(mark))"
        case .badReturnValue(let type, let value): "Return path message \(type) with value \(value)"
        }
    }

    private func hex<T: BinaryInteger>(_ value: T) -> String { String(value, radix: 16) }

    private static func describe(section name: String) -> String {
        switch name {
        case "block":
            "The source copies disks within the stream (migrate -b); use shared storage or a block job instead"
        case "vfio":
            "The source migrates a VFIO device in iterations, which Apus cannot follow; detach the device first"
        default:
            "Section \"\(name)\" has iterations but no length, and Apus has no parser for it; detach the device first"
        }
    }
}
