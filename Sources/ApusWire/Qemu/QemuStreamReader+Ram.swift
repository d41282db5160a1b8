import ApusSystem

// RAM records: u64 (offset in the block | flags), then by kind
//
//   ZERO 02          [str8 block] u8 0             BLOCK LIST 04    see blockList
//   PAGE 08          [str8 block] 4096 bytes       EOS 10           nothing
//   XBZRLE 40        [str8 block] u8 1, u16 n, n   FLUSH 200        nothing
//   COMPRESSED 100   [str8 block] u32 n, n bytes
//
// CONTINUE 20 stands for "same block as the previous record" and leaves out the name.

/// Flags in the low 12 bits of a record's first word.
enum RecordFlags {
    static let zero: UInt64 = 0x002
    static let blockList: UInt64 = 0x004
    static let page: UInt64 = 0x008
    static let endOfRecords: UInt64 = 0x010
    static let sameBlock: UInt64 = 0x020
    static let xbzrle: UInt64 = 0x040
    static let compressed: UInt64 = 0x100
    static let multifdFlush: UInt64 = 0x200
    static let mask: UInt64 = 0xfff
}

extension QemuStreamReader {
    mutating func record(_ bytes: RawSpan) throws(StreamError) -> Step {
        let page = StreamLimits.pageBytes
        guard bytes.byteCount >= 8 else { return .needMore(8) }
        let word: UInt64 = bytes.bigEndian(at: 0)
        let offset = word & ~RecordFlags.mask
        // Nearly every record of a real stream is one of these two.
        if lastBlock >= 0 && offset < lastLength {
            if word & RecordFlags.mask == RecordFlags.page | RecordFlags.sameBlock {
                guard bytes.byteCount >= 8 + page else { return .needMore(8 + page) }
                return .element(.page(block: lastBlock, offset: offset), length: 8 + page)
            }
            if word & RecordFlags.mask == RecordFlags.zero | RecordFlags.sameBlock && bytes.byteCount >= 9 {
                guard bytes.byte(at: 8) == 0 else { throw .nonZeroFill(bytes.byte(at: 8)) }
                return .element(.zero(block: lastBlock, offset: offset), length: 9)
            }
        }
        return try rareRecord(bytes, offset: offset, flags: word & RecordFlags.mask)
    }

    private mutating func rareRecord(_ bytes: RawSpan, offset: UInt64, flags: UInt64) throws(StreamError) -> Step {
        let kind = flags & ~RecordFlags.sameBlock
        switch kind {
        case RecordFlags.endOfRecords where flags == kind:
            guard offset == 0 else { throw .unsupportedRecord(flags: offset | flags) }
            state = isPreempt ? .closed : .footer
            return .element(.endOfRecords, length: 8)
        case RecordFlags.multifdFlush where flags == kind:
            guard offset == 0 else { throw .unsupportedRecord(flags: offset | flags) }
            return .element(.multifdFlush, length: 8)
        case RecordFlags.blockList where flags == kind:
            return try blockList(bytes, total: offset)
        case RecordFlags.page, RecordFlags.zero, RecordFlags.xbzrle, RecordFlags.compressed:
            return try pageRecord(bytes, offset: offset, kind: kind, sameBlock: flags != kind)
        default:
            throw .unsupportedRecord(flags: flags)
        }
    }

    private mutating func pageRecord(
        _ bytes: RawSpan, offset: UInt64, kind: UInt64, sameBlock: Bool
    ) throws(StreamError) -> Step {
        guard table.count > 0 else { throw .missingBlockList }
        var block = lastBlock
        var body = 8
        if sameBlock {
            guard block >= 0 else { throw .noPreviousBlock }
        } else {
            guard bytes.byteCount >= 9 else { return .needMore(9) }
            body = 9 + Int(bytes.byte(at: 8))
            guard bytes.byteCount >= body else { return .needMore(body) }
            block = try blockIndex(bytes.extracting(9..<body))
        }
        let page = StreamLimits.pageBytes
        guard table.contains(block, offset: offset, length: UInt64(page)) else {
            throw .outsideBlock(block: block, offset: offset, length: UInt64(page))
        }
        let element: StreamElement
        let length: Int
        switch kind {
        case RecordFlags.page:
            length = body + page
            element = .page(block: block, offset: offset)
        case RecordFlags.zero:
            length = body + 1
            guard bytes.byteCount >= length else { return .needMore(length) }
            guard bytes.byte(at: body) == 0 else { throw .nonZeroFill(bytes.byte(at: body)) }
            element = .zero(block: block, offset: offset)
        case RecordFlags.xbzrle:
            guard bytes.byteCount >= body + 3 else { return .needMore(body + 3) }
            let size = Int(bytes.bigEndian(at: body + 1, as: UInt16.self))
            guard bytes.byte(at: body) == 1, size <= page else {
                throw .badXbzrleHeader(encoding: bytes.byte(at: body), length: size)
            }
            length = body + 3 + size
            element = .xbzrle(block: block, offset: offset, dataLength: size)
        default:
            guard bytes.byteCount >= body + 4 else { return .needMore(body + 4) }
            let size: UInt32 = bytes.bigEndian(at: body)
            guard size > 0, size <= StreamLimits.compressedPageBytes else { throw .badCompressedLength(size) }
            length = body + 4 + Int(size)
            element = .compressed(block: block, offset: offset, dataLength: Int(size))
        }
        guard bytes.byteCount >= length else { return .needMore(length) }
        lastBlock = block
        lastLength = table.length(of: block)
        return .element(element, length: length)
    }

    /// The block with this name, the last one first. Throws ``StreamError/unknownBlock(name:)``.
    func blockIndex(_ name: RawSpan) throws(StreamError) -> Int {
        if lastBlock >= 0 && table.isName(of: lastBlock, name) { return lastBlock }
        guard let block = table.index(of: name) else { throw .unknownBlock(name: try WireName.text(name)) }
        return block
    }

    // MARK: Block list

    /// Until the used lengths add up to `total`: str8 name, u64 used length, [u64 page size], [u64 guest address].
    ///
    /// The guest address is there with x-ignore-shared. The page size is not announced; see `hasPageSize`.
    /// Nothing is built before the list is complete, so that a peer who sends it byte by byte costs no more than a walk.
    private mutating func blockList(_ bytes: RawSpan, total: UInt64) throws(StreamError) -> Step {
        guard table.count == 0 else { throw .repeatedBlockList }
        guard total > 0 else { throw .emptyBlockList }
        guard total <= limits.ramBytes else { throw .limit("RAM bytes", value: total, limit: limits.ramBytes) }
        var left = total
        var cursor = 8
        var count = 0
        while left > 0 {
            guard count < limits.blocks else {
                throw .limit("RAM blocks", value: UInt64(count) + 1, limit: UInt64(limits.blocks))
            }
            switch try blockFields(bytes, at: cursor, left: left) {
            case .needMore(let want): return .needMore(want)
            case .complete(let fields):
                left -= fields.length
                cursor = fields.end
                count += 1
            }
        }
        table = try blockTable(bytes, total: total)
        return .element(.blockList(count: count), length: cursor)
    }

    /// Where the fields of one entry of the block list lie.
    private struct BlockFields {
        var nameEnd: Int
        var length: UInt64
        var pageSizeAt: Int?
        var end: Int
    }

    private enum BlockFieldsStep { case needMore(Int), complete(BlockFields) }

    private func blockFields(_ bytes: RawSpan, at cursor: Int, left: UInt64) throws(StreamError) -> BlockFieldsStep {
        guard bytes.byteCount > cursor else { return .needMore(cursor + 1) }
        let nameEnd = cursor + 1 + Int(bytes.byte(at: cursor))
        // The eight bytes after the length tell whether a page size is there; an EOS follows the last block.
        let probe = nameEnd + (ignoresShared ? 16 : 8)
        guard bytes.byteCount >= probe + 8 else { return .needMore(probe + 8) }
        let length: UInt64 = bytes.bigEndian(at: nameEnd)
        guard length & RecordFlags.mask == 0 else { throw .unalignedBlock(length: length) }
        guard length <= left else { throw .blockListMismatch(left: left, length: length) }
        guard hasPageSize(bytes, at: probe, isLast: length == left) else {
            return .complete(BlockFields(nameEnd: nameEnd, length: length, pageSizeAt: nil, end: probe))
        }
        let size: UInt64 = bytes.bigEndian(at: nameEnd + 8)
        guard size.nonzeroBitCount == 1, size > 4096, size <= 1 << 40 else { throw .badBlockPageSize(size) }
        return .complete(BlockFields(nameEnd: nameEnd, length: length, pageSizeAt: nameEnd + 8, end: probe + 8))
    }

    /// The blocks of a list that is known to be complete.
    private func blockTable(_ bytes: RawSpan, total: UInt64) throws(StreamError) -> RamBlockTable {
        var found = RamBlockTable()
        var left = total
        var cursor = 8
        while left > 0, case .complete(let fields) = try blockFields(bytes, at: cursor, left: left) {
            var block = RamBlock(
                name: try WireName.text(bytes.extracting(cursor + 1..<fields.nameEnd)), usedLength: fields.length)
            if let offset = fields.pageSizeAt { block.pageSize = bytes.bigEndian(at: offset) }
            if ignoresShared { block.guestAddress = bytes.bigEndian(at: fields.end - 8, as: UInt64.self) }
            try found.append(block)
            left -= fields.length
            cursor = fields.end
        }
        return found
    }

    /// Whether what starts at `offset` is a number of the same block instead of what follows the block.
    ///
    /// After any block but the last comes a name, which has a length of at least 1, while page sizes and guest
    /// addresses have a first byte of 0. After the last comes a record, which has flags in its low 12 bits, while both
    /// have none.
    private func hasPageSize(_ bytes: RawSpan, at offset: Int, isLast: Bool) -> Bool {
        isLast ? bytes.bigEndian(at: offset, as: UInt64.self) & RecordFlags.mask == 0 : bytes.byte(at: offset) == 0
    }
}
