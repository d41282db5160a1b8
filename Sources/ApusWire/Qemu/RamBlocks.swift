import ApusSystem

/// A RAM block as the source announced it.
public struct RamBlock: Sendable, Equatable {
    /// QEMU's name ("pc.ram"), printable ASCII.
    public var name: String
    /// Bytes in use, a whole number of 4 KiB pages.
    public var usedLength: UInt64
    /// Bytes of a host page behind the block, if the source said so (huge pages with post-copy on); else 4096.
    public var pageSize: UInt64
    /// Where the guest sees it, in bytes; only with x-ignore-shared.
    public var guestAddress: UInt64?

    public init(name: String, usedLength: UInt64, pageSize: UInt64 = 4096, guestAddress: UInt64? = nil) {
        self.name = name
        self.usedLength = usedLength
        self.pageSize = pageSize
        self.guestAddress = guestAddress
    }
}

/// The blocks of one VM, found by the bytes of their names.
///
/// Names lie in one array so that a look-up touches no reference count.
public struct RamBlockTable: Sendable, Equatable {
    /// In the order of the block list; the index identifies a block everywhere in this module.
    public private(set) var blocks: [RamBlock] = []
    private var names: [UInt8] = []
    private var nameEnds: [Int] = []
    private var lengths: [UInt64] = []

    public init() {}

    /// Throws ``StreamError/duplicateBlock(name:)``, ``StreamError/badName`` for a name that does not fit the wire.
    public init(_ blocks: [RamBlock]) throws(StreamError) {
        for block in blocks { try append(block) }
    }

    public var count: Int { lengths.count }

    /// Used length in bytes; traps when the index is not in the table.
    public func length(of block: Int) -> UInt64 { lengths[block] }

    /// The block whose name is exactly these bytes.
    public func index(of name: RawSpan) -> Int? {
        for block in 0..<lengths.count where isName(of: block, name) { return block }
        return nil
    }

    /// Whether `name` is the name of `block`; traps when the index is not in the table.
    func isName(of block: Int, _ name: RawSpan) -> Bool {
        let start = block == 0 ? 0 : nameEnds[block - 1]
        let end = nameEnds[block]
        guard name.byteCount == end - start else { return false }
        for index in 0..<name.byteCount where names[start + index] != name.byte(at: index) { return false }
        return true
    }

    /// Bytes of `block`'s name.
    func nameLength(of block: Int) -> Int { nameEnds[block] - (block == 0 ? 0 : nameEnds[block - 1]) }

    /// Bytes of `block`'s name, appended to `buffer` as u8 length and bytes.
    func appendName(of block: Int, to buffer: inout StreamBuffer) {
        let start = block == 0 ? 0 : nameEnds[block - 1]
        let end = nameEnds[block]
        buffer.append(UInt8(end - start))
        buffer.append(names.span.rawBytes.extracting(start..<end))
    }

    /// Whether `offset..<offset + length` lies in the block, without overflow.
    func contains(_ block: Int, offset: UInt64, length: UInt64) -> Bool {
        let (end, overflow) = offset.addingReportingOverflow(length)
        return !overflow && end <= lengths[block]
    }

    mutating func append(_ block: RamBlock) throws(StreamError) {
        let bytes = Array(block.name.utf8)
        try WireName.check(bytes.span.rawBytes)
        guard index(of: bytes.span.rawBytes) == nil else { throw .duplicateBlock(name: block.name) }
        blocks.append(block)
        names.append(contentsOf: bytes)
        nameEnds.append(names.count)
        lengths.append(block.usedLength)
    }
}

/// A `str8` of the wire: u8 length and that many bytes, no terminator.
enum WireName {
    /// Throws ``StreamError/badName`` unless the name has 1 to 255 bytes of printable ASCII.
    static func check(_ name: RawSpan) throws(StreamError) {
        guard name.byteCount >= 1, name.byteCount <= 255 else { throw .badName }
        for index in 0..<name.byteCount {
            let byte = name.byte(at: index)
            guard byte >= 0x20, byte < 0x7f else { throw .badName }
        }
    }

    /// The name as text. Bytes outside printable ASCII are an error, so nothing is lost.
    static func text(_ name: RawSpan) throws(StreamError) -> String {
        try check(name)
        var text = ""
        for index in 0..<name.byteCount { text.unicodeScalars.append(Unicode.Scalar(name.byte(at: index))) }
        return text
    }
}
