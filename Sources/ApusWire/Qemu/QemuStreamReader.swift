import ApusSystem

/// Reads QEMU's migration stream (one direction, source to destination) element by element, without any I/O.
///
/// Give it the bytes at its position; it answers with one element or with how many bytes it needs. It takes streams of
/// QEMU 7.2 and later in the modes plain, return-path, xbzrle, compress, x-ignore-shared, dirty-bitmaps, the main
/// channel of multifd, post-copy, recovery of post-copy, and the post-copy preempt channel. The layout is in
/// `Docs/Wire/qemu-stream.md`. After an error the reader must not be used again.
///
///          header -> configuration* -> elements <-----------------------------+
///                                        | START, PART, END of ram            |
///                                        +-> records --EOS--> footer ---------+
///                                        | ... of dirty-bitmap                |
///                                        +-> bitmapChunks --EOS--> footer ----+
///                                        | FULL before ram: earlyDevice ------+
///                                        | FULL after it: device (opaque)
///                                        v
///                                   afterEndOfFile -> description -> ended
public struct QemuStreamReader: Sendable {
    public typealias Step = StreamStep<StreamElement>

    enum State: Sendable, Equatable {
        case header
        case configuration
        case elements
        case records
        case bitmapChunks
        case footer
        case earlyDevice(bytes: Int)
        case device
        case afterEndOfFile
        case description(left: Int)
        case ended
        case closed
    }

    /// Fixed.
    public let limits: StreamLimits
    /// Bytes of all elements reported so far.
    public private(set) var position: UInt64 = 0
    /// The machine type's name ("pc-q35-7.2"); empty before the header.
    public internal(set) var machine = ""
    /// x-ignore-shared: some blocks are listed but their pages never come.
    public internal(set) var ignoresShared = false
    /// The blocks with look-up by name, for writers and the return path; empty before the block list.
    public internal(set) var table = RamBlockTable()

    var state: State
    /// The section whose body is being read; its footer must carry this.
    var section: UInt32 = 0
    var ramSection: UInt32?
    var bitmapSection: UInt32?
    /// Bytes left of the package being read, -1 outside.
    var packageLeft = -1
    /// LISTEN or RUN was seen, or the connection is a recovery: the stream ends without a description.
    var isPostcopy = false
    /// A preempt channel has records only, no sections.
    let isPreempt: Bool

    // CONTINUE state of this channel; it survives section borders.
    var lastBlock = -1
    var lastLength: UInt64 = 0
    /// `end` was reported and no byte has refuted it since.
    var endReported = false
    /// The last eight opaque bytes, newest in the low bits: where a guessed end of the stream is recognised.
    var window: UInt64 = .max

    /// A reader for the main connection of a new migration.
    public init(limits: StreamLimits = StreamLimits()) {
        self.limits = limits
        state = .header
        isPreempt = false
    }

    /// A reader for the connection that resumes a broken post-copy migration: no header, the sections of before.
    ///
    /// - Parameter broken: the reader of the connection that was lost.
    public init(recovering broken: QemuStreamReader) {
        self.init(continuing: broken, state: .elements, isPreempt: false)
    }

    /// A reader for the post-copy preempt channel: only RAM records, with a CONTINUE state of their own.
    ///
    /// - Parameter main: the reader of the main connection, which knows the blocks.
    public init(preemptChannelOf main: QemuStreamReader) {
        self.init(continuing: main, state: .records, isPreempt: true)
    }

    private init(continuing other: QemuStreamReader, state: State, isPreempt: Bool) {
        limits = other.limits
        machine = other.machine
        ignoresShared = other.ignoresShared
        table = other.table
        ramSection = other.ramSection
        bitmapSection = other.bitmapSection
        isPostcopy = true
        self.state = state
        self.isPreempt = isPreempt
    }

    /// The RAM blocks, once ``StreamElement/blockList(count:)`` was reported.
    public var blocks: [RamBlock] { table.blocks }

    /// From the first device section on the bytes pass through; the source's RAM is complete on the wire.
    public var isOpaque: Bool {
        switch state {
        case .device, .afterEndOfFile, .description, .ended: true
        case .header, .configuration, .elements, .records, .bitmapChunks, .footer, .earlyDevice, .closed: false
        }
    }

    /// Reads the element at the front of `bytes`, which begin at the reader's position.
    @inline(__always)
    public mutating func next(_ bytes: RawSpan) throws(StreamError) -> Step {
        let step = packageLeft < 0 ? try element(bytes) : try packagedElement(bytes)
        if case .element(_, let length) = step { position += UInt64(length) }
        return step
    }

    /// Whether the stream is complete if no byte follows. True at `end`, but also behind a byte that only looks like
    /// the end (`endOfFile` in device state), because machine types with suppress-vmdesc send nothing after it.
    public var mayEndHere: Bool {
        switch state {
        case .ended, .closed, .afterEndOfFile: true
        // Machine types from 8.0 close the preempt channel without EOS.
        case .records: isPreempt
        case .header, .configuration, .elements, .bitmapChunks, .footer, .earlyDevice, .device, .description: false
        }
    }

    /// Call when the connection has ended and all its bytes were given.
    ///
    /// - Parameter left: bytes that were given but are not part of a reported element.
    /// - Throws: ``StreamError/truncated(position:)`` unless the stream may end here.
    public func finish(left: Int) throws(StreamError) {
        guard mayEndHere, left == 0 else { throw .truncated(position: position) }
    }

    mutating func element(_ bytes: RawSpan) throws(StreamError) -> Step {
        switch state {
        case .records: try record(bytes)
        case .header: try header(bytes)
        case .configuration: try configuration(bytes)
        case .elements: try sectionOrCommand(bytes)
        case .bitmapChunks: try bitmapChunk(bytes)
        case .footer: try footer(bytes)
        case .earlyDevice(let seen): try earlyDevice(bytes, seen: seen)
        case .device: deviceBytes(bytes)
        case .afterEndOfFile: afterEndOfFile(bytes)
        case .description(let left): descriptionBytes(bytes, left: left)
        case .ended: try ended(bytes)
        case .closed: try closed(bytes)
        }
    }

    private func closed(_ bytes: RawSpan) throws(StreamError) -> Step {
        guard bytes.byteCount == 0 else { throw .bytesAfterEnd }
        return .needMore(1)
    }
}

// MARK: - Header

extension QemuStreamReader {
    mutating func header(_ bytes: RawSpan) throws(StreamError) -> Step {
        guard bytes.byteCount >= 4 else { return .needMore(4) }
        let magic: UInt32 = bytes.bigEndian(at: 0)
        guard magic == ConnectionKind.mainMagic else { throw .notMigrationStream(magic: magic) }
        guard bytes.byteCount >= 8 else { return .needMore(8) }
        let version: UInt32 = bytes.bigEndian(at: 4)
        guard version == 3 else { throw .unsupportedVersion(version) }
        guard bytes.byteCount >= 13 else { return .needMore(13) }
        guard bytes.byte(at: 8) == WireType.configuration else {
            throw .missingConfiguration(marker: bytes.byte(at: 8))
        }
        let length = Int(bytes.bigEndian(at: 9, as: UInt32.self))
        guard length <= limits.machineNameBytes else {
            throw .limit("Machine name bytes", value: UInt64(length), limit: UInt64(limits.machineNameBytes))
        }
        guard bytes.byteCount >= 13 + length else { return .needMore(13 + length) }
        machine = try WireName.text(bytes.extracting(13..<13 + length))
        state = .configuration
        return .element(.header(nameLength: length), length: 13 + length)
    }

    /// Subsections: u8 5, str8 name, u32 version, fields. The first other type byte ends them.
    mutating func configuration(_ bytes: RawSpan) throws(StreamError) -> Step {
        guard bytes.byteCount >= 2 else { return .needMore(2) }
        guard bytes.byte(at: 0) == WireType.subsection else {
            state = .elements
            return try sectionOrCommand(bytes)
        }
        let fields = 2 + Int(bytes.byte(at: 1)) + 4
        guard bytes.byteCount >= fields else { return .needMore(fields) }
        let name = try WireName.text(bytes.extracting(2..<fields - 4))
        let version: UInt32 = bytes.bigEndian(at: fields - 4)
        guard version == 1 else { throw .unknownConfiguration(name: name, version: version) }
        switch name {
        case "configuration/target-page-bits":
            guard bytes.byteCount >= fields + 4 else { return .needMore(fields + 4) }
            let bits: UInt32 = bytes.bigEndian(at: fields)
            guard bits == 12 else { throw .unsupportedPageBits(bits) }
            return .element(.configuration(.targetPageBits(bits)), length: fields + 4)
        case "configuration/uuid":
            guard bytes.byteCount >= fields + 16 else { return .needMore(fields + 16) }
            return .element(.configuration(.uuid), length: fields + 16)
        case "configuration/capabilities":
            return try capabilities(bytes, from: fields)
        default:
            throw .unknownConfiguration(name: name, version: version)
        }
    }

    private mutating func capabilities(_ bytes: RawSpan, from fields: Int) throws(StreamError) -> Step {
        guard bytes.byteCount >= fields + 4 else { return .needMore(fields + 4) }
        let count = Int(bytes.bigEndian(at: fields, as: UInt32.self))
        guard count <= limits.capabilities else {
            throw .limit("Capabilities", value: UInt64(count), limit: UInt64(limits.capabilities))
        }
        var ignores = false
        var cursor = fields + 4
        for _ in 0..<count {
            guard bytes.byteCount > cursor else { return .needMore(cursor + 1) }
            let end = cursor + 1 + Int(bytes.byte(at: cursor))
            guard bytes.byteCount >= end else { return .needMore(end) }
            let name = try WireName.text(bytes.extracting(cursor + 1..<end))
            switch name {
            case "x-ignore-shared": ignores = true
            case "mapped-ram": throw .mappedRam
            default: throw .unknownCapability(name: name)
            }
            cursor = end
        }
        ignoresShared = ignoresShared || ignores
        return .element(.configuration(.capabilities(count: count)), length: cursor)
    }
}

/// The type bytes of the main stream.
enum WireType {
    static let endOfFile: UInt8 = 0x00
    static let start: UInt8 = 0x01
    static let part: UInt8 = 0x02
    static let end: UInt8 = 0x03
    static let full: UInt8 = 0x04
    static let subsection: UInt8 = 0x05
    static let description: UInt8 = 0x06
    static let configuration: UInt8 = 0x07
    static let command: UInt8 = 0x08
    static let footer: UInt8 = 0x7e
}
