internal import ApusMemory
internal import ApusSystem

// The index of a disk image on disk, from front to end; integers are little-endian.
//
//   head     128 bytes   "APUSIDX1" | version | key | device | inode | bytes | written | first | last hint | stride
//                        | extents, 0 while it is being made | unreadable | ... | checksum of all before it
//   extent   2064 bytes  number u64 | 256 hints u64, 0: a block of zeros, or behind the end | checksum of all before it
//   extent   ...         numbers ascend
//
// It only grows while it is made (NAME.part); what was made before a kill is used again. When it is complete, the head is
// written once more, and the file takes its real name. The table itself is not in it: a file that is mapped and then cut
// would kill the agent, and inserting is faster than a disk.

/// First block of a sidecar: which image, and in which state.
struct SidecarHead: Equatable {
    static let byteCount = 128
    static let version: UInt32 = 1
    private static let magic: UInt64 = 0x3158_4449_5355_5041

    var fingerprint: UInt64
    var stamp: FileStamp
    /// Hints of the image's first and last block: another image can have the same number and size.
    var firstHint: UInt64
    var lastHint: UInt64
    var stride: UInt32
    /// 0 while it is being made.
    var extents: UInt32
    var unreadable: UInt32
    var isComplete: Bool

    func write(to buffer: inout PageBuffer) {
        for at in Swift.stride(from: 0, to: Self.byteCount, by: 8) { buffer.store(0, at: at) }
        let words = [
            Self.magic, UInt64(Self.version), fingerprint, stamp.device, stamp.inode, stamp.byteCount, stamp.writtenNs,
            firstHint, lastHint, UInt64(stride), UInt64(extents), UInt64(unreadable), isComplete ? 1 : 0,
        ]
        for (index, word) in words.enumerated() { buffer.store(word, at: index * 8) }
        let sum = Checksum.of(buffer.bytes.extracting(0..<Self.byteCount - 8))
        buffer.store(sum, at: Self.byteCount - 8)
    }

    static func read(_ bytes: RawSpan) throws(SidecarFault) -> SidecarHead {
        func word(_ index: Int) -> UInt64 { bytes.littleEndian(at: index * 8) }
        guard bytes.byteCount >= byteCount, word(0) == magic else { throw .corrupt("it is no index") }
        guard word(1) == UInt64(version) else { throw .otherFormat(version: UInt32(truncatingIfNeeded: word(1))) }
        guard word(15) == Checksum.of(bytes.extracting(0..<byteCount - 8)) else { throw .corrupt("its head") }
        return SidecarHead(
            fingerprint: word(2),
            stamp: FileStamp(device: word(3), inode: word(4), byteCount: word(5), writtenNs: word(6)),
            firstHint: word(7), lastHint: word(8), stride: UInt32(truncatingIfNeeded: word(9)),
            extents: UInt32(truncatingIfNeeded: word(10)), unreadable: UInt32(truncatingIfNeeded: word(11)),
            isComplete: word(12) == 1)
    }

    /// What stands against using a sidecar for the image as it is now, first the worst.
    func fault(against now: SidecarHead) -> SidecarFault? {
        if fingerprint != now.fingerprint { return .otherKey }
        if stamp.device != now.stamp.device || stamp.inode != now.stamp.inode { return .otherImage }
        if stride != now.stride { return .otherStride }
        if stamp != now.stamp || firstHint != now.firstHint || lastHint != now.lastHint { return .imageChanged }
        // A block device does not tell when it was written to.
        return stamp.writtenNs == 0 ? .imageChanged : nil
    }
}

/// Hints of one extent's blocks, as they lie in a sidecar.
struct ExtentHints: ~Copyable {
    static let byteCount = 8 + ContentLimits.extentBlocks * 8 + 8
    var buffer = PageBuffer(byteCount: ExtentHints.byteCount)

    var number: UInt32 { UInt32(truncatingIfNeeded: buffer.bytes.littleEndian(at: 0, as: UInt64.self)) }
    func hint(_ block: Int) -> UInt64 { buffer.bytes.littleEndian(at: 8 + block * 8) }

    /// Takes the hints of the blocks in `content`, which is an extent's bytes, or what there is of them; the rest of a
    /// last block that is not full is left out.
    mutating func fill(_ number: UInt32, _ content: RawSpan, _ key: ContentKey) {
        buffer.store(UInt64(number), at: 0)
        for block in 0..<ContentLimits.extentBlocks {
            let start = block * Limits.pageBytes
            var hint: UInt64 = 0
            if start + Limits.pageBytes <= content.byteCount {
                let bytes = content.extracting(start..<start + Limits.pageBytes)
                if !bytes.isAllZero { hint = key.hint(of: bytes) }
            }
            buffer.store(hint, at: 8 + block * 8)
        }
        buffer.store(sum(), at: Self.byteCount - 8)
    }

    func isWhole() -> Bool { buffer.bytes.littleEndian(at: Self.byteCount - 8) == sum() }

    private func sum() -> UInt64 { Checksum.of(buffer.bytes.extracting(0..<Self.byteCount - 8)) }
}

/// A sidecar as it is written and read again, extent by extent.
struct Sidecar: ~Copyable {
    let file: Descriptor
    private(set) var extents = 0

    init(_ file: Descriptor) { self.file = file }

    static func readHead(_ file: Descriptor) throws(SidecarFault) -> SidecarHead {
        var buffer = PageBuffer(byteCount: SidecarHead.byteCount)
        let count: Int
        do { count = try file.read(at: 0, into: &buffer, 0..<SidecarHead.byteCount) } catch { throw .unreadable(error) }
        return try SidecarHead.read(buffer.bytes.extracting(0..<count))
    }

    func write(_ head: SidecarHead) throws(SystemError) {
        var buffer = PageBuffer(byteCount: SidecarHead.byteCount)
        head.write(to: &buffer)
        try file.write(buffer.bytes, at: 0)
    }

    /// Everything is written: extents first, and the head that vouches for them last.
    func finish(_ head: SidecarHead) throws(SystemError) {
        try file.truncate(toByteCount: Self.offset(extents))
        try file.sync()
        try write(head)
        try file.sync()
    }

    mutating func append(_ hints: borrowing ExtentHints) throws(SystemError) {
        try file.write(hints.buffer.bytes, at: Self.offset(extents))
        extents += 1
    }

    /// False at the end, or where the file is damaged.
    mutating func next(_ hints: inout ExtentHints) throws(SystemError) -> Bool {
        let count = try file.read(at: Self.offset(extents), into: &hints.buffer, 0..<ExtentHints.byteCount)
        guard count == ExtentHints.byteCount, hints.isWhole() else { return false }
        extents += 1
        return true
    }

    private static func offset(_ extent: Int) -> UInt64 {
        UInt64(SidecarHead.byteCount + extent * ExtentHints.byteCount)
    }
}
