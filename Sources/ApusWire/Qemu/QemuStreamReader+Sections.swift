import ApusSystem

// Sections: START and FULL are u8 type, u32 id, str8 name, u32 instance, u32 version, body, footer;
// PART and END are u8 type, u32 id, body, footer. The footer is u8 7e, u32 id.

extension QemuStreamReader {
    mutating func sectionOrCommand(_ bytes: RawSpan) throws(StreamError) -> Step {
        guard bytes.byteCount >= 1 else { return .needMore(1) }
        let type = bytes.byte(at: 0)
        switch type {
        case WireType.start: return try start(bytes)
        case WireType.part, WireType.end: return try continued(bytes, isEnd: type == WireType.end)
        case WireType.full: return try full(bytes)
        case WireType.command: return try command(bytes)
        case WireType.endOfFile:
            guard packageLeft < 0 else { throw .unexpectedElement(type: type) }
            // Post-copy ends here; otherwise the description follows (a stream without any device).
            state = isPostcopy ? .ended : .afterEndOfFile
            return .element(.endOfFile, length: 1)
        default: throw .unexpectedElement(type: type)
        }
    }

    private mutating func start(_ bytes: RawSpan) throws(StreamError) -> Step {
        guard let (head, name) = try sectionHead(bytes) else { return .needMore(headWant(bytes)) }
        guard head.id != ramSection, head.id != bitmapSection else { throw .sectionIdInUse(head.id) }
        switch head.kind {
        case .ram:
            guard ramSection == nil else { throw .sectionIdInUse(head.id) }
            ramSection = head.id
            state = .records
        case .dirtyBitmap:
            guard bitmapSection == nil else { throw .sectionIdInUse(head.id) }
            bitmapSection = head.id
            state = .bitmapChunks
        case .device: throw .unsupportedSection(name: name)
        }
        section = head.id
        return .element(.sectionStart(head), length: 14 + head.nameLength)
    }

    private mutating func continued(_ bytes: RawSpan, isEnd: Bool) throws(StreamError) -> Step {
        guard bytes.byteCount >= 5 else { return .needMore(5) }
        let id: UInt32 = bytes.bigEndian(at: 1)
        let kind: SectionKind
        if id == ramSection {
            kind = .ram
            state = .records
        } else if id == bitmapSection {
            kind = .dirtyBitmap
            state = .bitmapChunks
        } else {
            throw .unknownSectionId(id)
        }
        section = id
        return .element(isEnd ? .sectionEnd(id: id, kind: kind) : .sectionPart(id: id, kind: kind), length: 5)
    }

    private mutating func full(_ bytes: RawSpan) throws(StreamError) -> Step {
        guard let (head, name) = try sectionHead(bytes) else { return .needMore(headWant(bytes)) }
        guard head.kind == .device else { throw .iterableAsDevice(name: name) }
        section = head.id
        window = .max
        state = ramSection == nil ? .earlyDevice(bytes: 0) : .device
        return .element(.sectionFull(head), length: 14 + head.nameLength)
    }

    /// Nil when more bytes are needed.
    private func sectionHead(_ bytes: RawSpan) throws(StreamError) -> (SectionHead, name: String)? {
        guard bytes.byteCount >= headWant(bytes) else { return nil }
        let nameEnd = 6 + Int(bytes.byte(at: 5))
        let name = try WireName.text(bytes.extracting(6..<nameEnd))
        var head = SectionHead(
            id: bytes.bigEndian(at: 1), kind: .device, instance: bytes.bigEndian(at: nameEnd),
            version: bytes.bigEndian(at: nameEnd + 4), nameLength: nameEnd - 6)
        let known: UInt32
        switch name {
        case "ram": (head.kind, known) = (.ram, 4)
        case "dirty-bitmap": (head.kind, known) = (.dirtyBitmap, 1)
        default: return (head, name)
        }
        guard head.version == known, head.instance == 0 else {
            throw .unsupportedSectionVersion(name: name, version: head.version, instance: head.instance)
        }
        return (head, name)
    }

    private func headWant(_ bytes: RawSpan) -> Int {
        bytes.byteCount < 6 ? 6 : 14 + Int(bytes.byte(at: 5))
    }

    mutating func footer(_ bytes: RawSpan) throws(StreamError) -> Step {
        guard bytes.byteCount >= 5 else { return .needMore(5) }
        let id: UInt32 = bytes.bigEndian(at: 1)
        guard bytes.byte(at: 0) == WireType.footer, id == section else {
            throw .wrongFooter(type: bytes.byte(at: 0), id: id, expected: section)
        }
        state = .elements
        return .element(.footer(id: id), length: 5)
    }

    // MARK: Dirty bitmaps

    /// u8 flags, [str8 node if 08], [str8 bitmap if 04], then START 10: u32, u8; COMPLETE 20: nothing; BITS 40: u64
    /// sector, u32 sectors and, unless ZEROES 02, u64 n and n bytes; EOS 01 ends the body.
    mutating func bitmapChunk(_ bytes: RawSpan) throws(StreamError) -> Step {
        guard bytes.byteCount >= 1 else { return .needMore(1) }
        let flags = bytes.byte(at: 0)
        if flags == 0x01 {
            state = .footer
            return .element(.bitmapChunk(flags: flags), length: 1)
        }
        var cursor = 1
        for _ in 0..<(flags & 0x0c).nonzeroBitCount {
            guard bytes.byteCount > cursor else { return .needMore(cursor + 1) }
            cursor += 1 + Int(bytes.byte(at: cursor))
        }
        switch flags & ~0x0e {
        case 0x10: cursor += 5
        case 0x20: break
        case 0x40:
            cursor += 12
            if flags & 0x02 == 0 {
                guard bytes.byteCount >= cursor + 8 else { return .needMore(cursor + 8) }
                let size: UInt64 = bytes.bigEndian(at: cursor)
                guard size <= limits.bitmapChunkBytes else {
                    throw .limit("Bitmap chunk bytes", value: size, limit: limits.bitmapChunkBytes)
                }
                cursor += 8 + Int(size)
            }
        default: throw .unsupportedBitmapChunk(flags: flags)
        }
        guard bytes.byteCount >= cursor else { return .needMore(cursor) }
        return .element(.bitmapChunk(flags: flags), length: cursor)
    }
}
