import ApusSystem

/// Writes a QEMU migration stream that QEMU 7.2 and later load; the counterpart of ``QemuStreamReader``.
///
/// Everything is appended to a ``StreamBuffer`` of the caller. Page data need not go through it: `page` writes only the
/// record's head, behind which the caller puts the 4096 bytes (with writev). The writer keeps its own CONTINUE state,
/// so records may be dropped, reordered and inserted. One writer per channel.
///
/// The order of calls is the caller's duty; what the destination demands is in `Docs/Wire/qemu-stream.md`.
public struct QemuStreamWriter: Sendable {
    /// The blocks that `block` arguments index; set by `blockList`, or given for a channel without one.
    public private(set) var table: RamBlockTable
    // CONTINUE state: the block of the last page record, -1 for none.
    private var lastBlock = -1

    public init(table: RamBlockTable = RamBlockTable()) { self.table = table }

    /// The next page record names its block even if it is the same one. QEMU does this after a package and at a
    /// recovery; needed whenever the receiving channel's state is unknown.
    public mutating func forgetBlock() { lastBlock = -1 }

    // MARK: Header

    /// Magic, version and machine name. Traps when the name has more bytes than a reader takes (255).
    public func header(machine: String, to buffer: inout StreamBuffer) {
        let name = machine.utf8
        precondition((1...255).contains(name.count), "A machine name has 1 to 255 bytes")
        buffer.append(ConnectionKind.mainMagic)
        buffer.append(UInt32(3))
        buffer.append(WireType.configuration)
        buffer.append(UInt32(name.count))
        for byte in name { buffer.append(byte) }
    }

    /// log2 of the page size; QEMU for x86 never sends it.
    public func targetPageBits(_ bits: UInt32, to buffer: inout StreamBuffer) {
        subsection("configuration/target-page-bits", to: &buffer)
        buffer.append(bits)
    }

    /// What both sides must have in common. Of all capabilities only "x-ignore-shared" is announced.
    public func capabilities(_ names: [String], to buffer: inout StreamBuffer) {
        subsection("configuration/capabilities", to: &buffer)
        buffer.append(UInt32(names.count))
        for name in names { buffer.append(name: name) }
    }

    /// Traps unless `uuid` has 16 bytes.
    public func uuid(_ uuid: RawSpan, to buffer: inout StreamBuffer) {
        precondition(uuid.byteCount == 16, "A uuid has 16 bytes")
        subsection("configuration/uuid", to: &buffer)
        buffer.append(uuid)
    }

    private func subsection(_ name: String, to buffer: inout StreamBuffer) {
        buffer.append(WireType.subsection)
        buffer.append(name: name)
        buffer.append(UInt32(1))
    }

    // MARK: Sections

    public func sectionStart(
        id: UInt32, name: String, instance: UInt32 = 0, version: UInt32, to buffer: inout StreamBuffer
    ) {
        head(WireType.start, id, name, instance, version, to: &buffer)
    }

    public func sectionFull(
        id: UInt32, name: String, instance: UInt32, version: UInt32, to buffer: inout StreamBuffer
    ) {
        head(WireType.full, id, name, instance, version, to: &buffer)
    }

    public func sectionPart(id: UInt32, to buffer: inout StreamBuffer) {
        buffer.append(WireType.part)
        buffer.append(id)
    }

    public func sectionEnd(id: UInt32, to buffer: inout StreamBuffer) {
        buffer.append(WireType.end)
        buffer.append(id)
    }

    public func footer(id: UInt32, to buffer: inout StreamBuffer) {
        buffer.append(WireType.footer)
        buffer.append(id)
    }

    private func head(
        _ type: UInt8, _ id: UInt32, _ name: String, _ instance: UInt32, _ version: UInt32,
        to buffer: inout StreamBuffer
    ) {
        buffer.append(type)
        buffer.append(id)
        buffer.append(name: name)
        buffer.append(instance)
        buffer.append(version)
    }

    public func endOfFile(to buffer: inout StreamBuffer) { buffer.append(WireType.endOfFile) }

    /// The head of the VM description; the caller puts `length` bytes of JSON behind it.
    public func vmDescription(length: UInt32, to buffer: inout StreamBuffer) {
        buffer.append(WireType.description)
        buffer.append(length)
    }

    // MARK: RAM records

    /// The block list, as a record of the START section. `withAddresses` is for x-ignore-shared and must agree with the
    /// announced capability; page sizes are written where they are not 4096. Traps when a length is not whole pages.
    public mutating func blockList(_ table: RamBlockTable, withAddresses: Bool, to buffer: inout StreamBuffer) {
        self.table = table
        lastBlock = -1
        let total = table.blocks.reduce(0 as UInt64) { $0 + $1.usedLength }
        buffer.append(total | RecordFlags.blockList)
        for (index, block) in table.blocks.enumerated() {
            precondition(block.usedLength & RecordFlags.mask == 0, "A block has whole pages")
            table.appendName(of: index, to: &buffer)
            buffer.append(block.usedLength)
            if block.pageSize != UInt64(StreamLimits.pageBytes) { buffer.append(block.pageSize) }
            if withAddresses { buffer.append(block.guestAddress ?? 0) }
        }
    }

    /// The head of a page record: 8 bytes, or 9 and the name when the block changes. 4096 bytes of page must follow.
    /// Traps when `offset` is not a multiple of 4096 or outside the block.
    @inline(__always)
    public mutating func page(block: Int, offset: UInt64, to buffer: inout StreamBuffer) {
        recordHead(RecordFlags.page, block: block, offset: offset, to: &buffer)
    }

    /// A page of zeros, complete. Traps as `page`.
    @inline(__always)
    public mutating func zero(block: Int, offset: UInt64, to buffer: inout StreamBuffer) {
        recordHead(RecordFlags.zero, block: block, offset: offset, to: &buffer)
        buffer.append(UInt8(0))
    }

    /// The head of an XBZRLE record; `dataLength` bytes must follow. Traps as `page`, and when it is more than a page.
    public mutating func xbzrle(block: Int, offset: UInt64, dataLength: Int, to buffer: inout StreamBuffer) {
        precondition((0...StreamLimits.pageBytes).contains(dataLength), "XBZRLE data fit in a page")
        recordHead(RecordFlags.xbzrle, block: block, offset: offset, to: &buffer)
        buffer.append(UInt8(1))
        buffer.append(UInt16(dataLength))
    }

    /// The head of a zlib record; `dataLength` bytes must follow. Only QEMU before 9.1 with compress on takes it.
    public mutating func compressed(block: Int, offset: UInt64, dataLength: Int, to buffer: inout StreamBuffer) {
        precondition((1...StreamLimits.compressedPageBytes).contains(dataLength), "Above zlib's bound")
        recordHead(RecordFlags.compressed, block: block, offset: offset, to: &buffer)
        buffer.append(UInt32(dataLength))
    }

    /// Only for a destination of 8.1 or later.
    public func multifdFlush(to buffer: inout StreamBuffer) { buffer.append(RecordFlags.multifdFlush) }

    /// Ends the records of a section; the footer must follow. On a preempt channel it ends the channel.
    public func endOfRecords(to buffer: inout StreamBuffer) { buffer.append(RecordFlags.endOfRecords) }

    @inline(__always)
    private mutating func recordHead(_ kind: UInt64, block: Int, offset: UInt64, to buffer: inout StreamBuffer) {
        precondition(
            offset & RecordFlags.mask == 0 && offset < table.length(of: block), "A page lies in its block")
        if block == lastBlock {
            buffer.append(offset | kind | RecordFlags.sameBlock)
        } else {
            buffer.append(offset | kind)
            table.appendName(of: block, to: &buffer)
            lastBlock = block
        }
    }

    // MARK: Commands

    /// Any command without a list of ranges and not `unknown`: those have functions of their own and trap here.
    /// `packaged` writes the head; its `length` bytes of embedded stream must follow at once.
    public func command(_ command: StreamCommand, to buffer: inout StreamBuffer) {
        switch command {
        case .openReturnPath: commandHead(CommandNumber.openReturnPath, 0, to: &buffer)
        case .ping(let number):
            commandHead(CommandNumber.ping, 4, to: &buffer)
            buffer.append(number)
        case .postcopyAdvise(let pageSizes, let targetPageSize):
            commandHead(CommandNumber.postcopyAdvise, 16, to: &buffer)
            buffer.append(pageSizes)
            buffer.append(targetPageSize)
        case .postcopyAdviseBitmaps: commandHead(CommandNumber.postcopyAdvise, 0, to: &buffer)
        case .postcopyListen: commandHead(CommandNumber.postcopyListen, 0, to: &buffer)
        case .postcopyRun: commandHead(CommandNumber.postcopyRun, 0, to: &buffer)
        case .packaged(let length):
            commandHead(CommandNumber.packaged, 4, to: &buffer)
            buffer.append(UInt32(length))
        case .postcopyResume: commandHead(CommandNumber.postcopyResume, 0, to: &buffer)
        case .receiveBitmap(let block):
            commandHead(CommandNumber.receiveBitmap, table.nameLength(of: block) + 1, to: &buffer)
            table.appendName(of: block, to: &buffer)
        case .switchoverStart: commandHead(CommandNumber.switchoverStart, 0, to: &buffer)
        case .postcopyDiscard: preconditionFailure("Use discard(block:ranges:to:)")
        case .unknown: preconditionFailure("An unknown command is copied, not written")
        }
    }

    /// A discard command. Traps above ``discardRangesMax`` ranges: send several commands.
    public func discard(block: Int, ranges: [PageRange], to buffer: inout StreamBuffer) {
        precondition(ranges.count <= Self.discardRangesMax, "More ranges than one command holds")
        commandHead(CommandNumber.postcopyDiscard, 3 + table.nameLength(of: block) + 16 * ranges.count, to: &buffer)
        buffer.append(UInt8(0))
        table.appendName(of: block, to: &buffer)
        buffer.append(UInt8(0))
        for range in ranges {
            buffer.append(range.start)
            buffer.append(range.length)
        }
    }

    /// Ranges in one discard command, as QEMU sends them.
    public static let discardRangesMax = 12

    private func commandHead(_ number: UInt16, _ length: Int, to buffer: inout StreamBuffer) {
        buffer.append(WireType.command)
        buffer.append(number)
        buffer.append(UInt16(length))
    }
}

/// A range within a RAM block, in bytes from the block's start, whole pages.
public struct PageRange: Sendable, Equatable {
    public var start: UInt64
    public var length: UInt64

    public init(start: UInt64, length: UInt64) {
        self.start = start
        self.length = length
    }

    /// Range `index` of a `postcopyDiscard` element that has `ranges` of them; traps outside.
    ///
    /// - Parameter element: all bytes of the element.
    public init(discard element: RawSpan, index: Int, of ranges: Int) {
        precondition(index >= 0 && index < ranges, "No such range")
        let offset = element.byteCount - 16 * (ranges - index)
        start = element.bigEndian(at: offset)
        length = element.bigEndian(at: offset + 8)
    }
}
