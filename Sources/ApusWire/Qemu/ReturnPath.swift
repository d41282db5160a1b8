import ApusSystem

// The return path: what the destination tells the source, on the main connection or, in post-copy, also on the preempt
// channel's. u16 type, u16 length, payload; all big-endian.
//
//   1 SHUT u32 0|1                  4 REQ_PAGES u64 start, u32 bytes
//   2 PONG u32 n                    5 RECV_BITMAP str8 block; then, not counted: u64 size, bitmap, u64 mark
//   3 REQ_PAGES_ID as 4, str8       6 RESUME_ACK u32 1             7 SWITCHOVER_ACK

/// A message of the return path. Trivial; `block` is an index into the table the reader was given.
public enum ReturnMessage: Sendable, Equatable {
    /// The last message: the destination has loaded the stream and runs the guest, or it has failed.
    case shut(failed: Bool)
    /// Everything before PING `n` was processed.
    case pong(UInt32)
    /// The guest waits for these pages (bytes from the block's start, whole pages of the block's page size).
    case requestPages(block: Int, start: UInt64, length: UInt32)
    /// Recovery: the bitmap of received pages follows, `size` bytes of little-endian 64-bit words, 1 = received.
    case receivedBitmap(block: Int, size: Int)
    /// Bytes of that bitmap, any number.
    case bitmapBytes
    /// The mark behind the bitmap.
    case bitmapEnd
    /// Recovery: the destination goes on.
    case resumeAcknowledged
    /// The destination is ready for the switch (8.1 and later, capability switchover-ack).
    case switchoverAcknowledged
}

enum ReturnType {
    static let shut: UInt16 = 1
    static let pong: UInt16 = 2
    static let requestNamed: UInt16 = 3
    static let request: UInt16 = 4
    static let bitmap: UInt16 = 5
    static let resume: UInt16 = 6
    static let switchover: UInt16 = 7
    static let bitmapMark: UInt64 = 0x0123_4567_89ab_cdef
}

/// Reads the return path without I/O; the rules of ``QemuStreamReader`` hold.
public struct ReturnPathReader: Sendable {
    public typealias Step = StreamStep<ReturnMessage>

    private enum State { case messages, bitmap(left: Int), mark, shut }

    /// The blocks that names are looked up in; set it as soon as the block list is known.
    public var table: RamBlockTable
    private var state = State.messages
    private var lastBlock = -1

    public init(table: RamBlockTable = RamBlockTable()) { self.table = table }

    /// Reads the message at the front of `bytes`.
    public mutating func next(_ bytes: RawSpan) throws(StreamError) -> Step {
        switch state {
        case .messages: return try message(bytes)
        case .bitmap(let left):
            guard bytes.byteCount > 0 else { return .needMore(1) }
            let count = min(left, bytes.byteCount)
            state = count == left ? .mark : .bitmap(left: left - count)
            return .element(.bitmapBytes, length: count)
        case .mark:
            guard bytes.byteCount >= 8 else { return .needMore(8) }
            let mark: UInt64 = bytes.bigEndian(at: 0)
            guard mark == ReturnType.bitmapMark else { throw .wrongBitmapEnd(mark) }
            state = .messages
            return .element(.bitmapEnd, length: 8)
        case .shut:
            guard bytes.byteCount == 0 else { throw .bytesAfterEnd }
            return .needMore(1)
        }
    }

    private mutating func message(_ bytes: RawSpan) throws(StreamError) -> Step {
        guard bytes.byteCount >= 4 else { return .needMore(4) }
        let type: UInt16 = bytes.bigEndian(at: 0)
        let length = Int(bytes.bigEndian(at: 2, as: UInt16.self))
        guard let expected = Self.lengths(of: type) else { throw .unknownReturnMessage(type: type) }
        guard expected.contains(length) else { throw .wrongReturnLength(type: type, length: length) }
        guard bytes.byteCount >= 4 + length else { return .needMore(4 + length) }
        let payload = bytes.extracting(4..<4 + length)
        switch type {
        case ReturnType.shut:
            let value: UInt32 = payload.bigEndian(at: 0)
            state = .shut
            return .element(.shut(failed: value != 0), length: 8)
        case ReturnType.pong: return .element(.pong(payload.bigEndian(at: 0)), length: 8)
        case ReturnType.request, ReturnType.requestNamed:
            return .element(try request(payload, isNamed: type == ReturnType.requestNamed), length: 4 + length)
        case ReturnType.bitmap: return try bitmap(bytes, payload: payload)
        case ReturnType.resume:
            let value: UInt32 = payload.bigEndian(at: 0)
            guard value == 1 else { throw .badReturnValue(type: type, value: value) }
            return .element(.resumeAcknowledged, length: 8)
        default: return .element(.switchoverAcknowledged, length: 4)
        }
    }

    private static func lengths(of type: UInt16) -> ClosedRange<Int>? {
        switch type {
        case ReturnType.shut, ReturnType.pong, ReturnType.resume: 4...4
        case ReturnType.requestNamed: 14...268
        case ReturnType.request: 12...12
        case ReturnType.bitmap: 2...256
        case ReturnType.switchover: 0...0
        default: nil
        }
    }

    private mutating func request(_ payload: RawSpan, isNamed: Bool) throws(StreamError) -> ReturnMessage {
        let start: UInt64 = payload.bigEndian(at: 0)
        let length: UInt32 = payload.bigEndian(at: 8)
        var block = lastBlock
        if isNamed {
            block = try self.block(payload, nameAt: 12, type: ReturnType.requestNamed)
        } else if block < 0 {
            throw .noPreviousBlock
        }
        guard length > 0, (start | UInt64(length)) & RecordFlags.mask == 0 else {
            throw .unalignedRequest(start: start, length: UInt64(length))
        }
        guard table.contains(block, offset: start, length: UInt64(length)) else {
            throw .outsideBlock(block: block, offset: start, length: UInt64(length))
        }
        lastBlock = block
        return .requestPages(block: block, start: start, length: length)
    }

    private mutating func bitmap(_ bytes: RawSpan, payload: RawSpan) throws(StreamError) -> Step {
        let head = 4 + payload.byteCount
        let block = try self.block(payload, nameAt: 0, type: ReturnType.bitmap)
        guard bytes.byteCount >= head + 8 else { return .needMore(head + 8) }
        let size: UInt64 = bytes.bigEndian(at: head)
        let expected = UInt64(Self.bitmapSize(blockLength: table.length(of: block)))
        guard size == expected else { throw .wrongBitmapSize(block: block, size: size, expected: expected) }
        state = size == 0 ? .mark : .bitmap(left: Int(size))
        return .element(.receivedBitmap(block: block, size: Int(size)), length: head + 8)
    }

    /// The block named by the str8 that fills the rest of the payload.
    private func block(_ payload: RawSpan, nameAt offset: Int, type: UInt16) throws(StreamError) -> Int {
        guard offset + 1 + Int(payload.byte(at: offset)) == payload.byteCount else {
            throw .wrongReturnLength(type: type, length: payload.byteCount)
        }
        let name = payload.extracting(offset + 1..<payload.byteCount)
        guard let block = table.index(of: name) else { throw .unknownBlock(name: try WireName.text(name)) }
        return block
    }

    /// Bytes of the bitmap for a block of `blockLength` bytes: one bit for each 4 KiB, in whole 64-bit words.
    public static func bitmapSize(blockLength: UInt64) -> Int {
        let pages = blockLength / UInt64(StreamLimits.pageBytes)
        return Int((pages + 63) / 64 * 8)
    }
}

/// Writes the return path into a ``StreamBuffer``. Keeps the block of the last request, as the source does.
public struct ReturnPathWriter: Sendable {
    public private(set) var table: RamBlockTable
    private var lastBlock = -1

    public init(table: RamBlockTable = RamBlockTable()) { self.table = table }

    /// Tells the blocks once they are known; requests begin with a name again.
    public mutating func use(_ table: RamBlockTable) {
        self.table = table
        lastBlock = -1
    }

    /// Appends one message. After `receivedBitmap` the caller appends the `size` bytes of the bitmap and writes
    /// `bitmapEnd`; `bitmapBytes` writes nothing. Traps when a request is not whole pages of its block.
    public mutating func write(_ message: ReturnMessage, to buffer: inout StreamBuffer) {
        switch message {
        case .shut(let failed): number(ReturnType.shut, failed ? 1 : 0, to: &buffer)
        case .pong(let ping): number(ReturnType.pong, ping, to: &buffer)
        case .requestPages(let block, let start, let length):
            request(block: block, start: start, length: length, to: &buffer)
        case .receivedBitmap(let block, let size):
            head(ReturnType.bitmap, 1 + table.nameLength(of: block), to: &buffer)
            table.appendName(of: block, to: &buffer)
            buffer.append(UInt64(size))
        case .bitmapBytes: break
        case .bitmapEnd: buffer.append(ReturnType.bitmapMark)
        case .resumeAcknowledged: number(ReturnType.resume, 1, to: &buffer)
        case .switchoverAcknowledged: head(ReturnType.switchover, 0, to: &buffer)
        }
    }

    private mutating func request(block: Int, start: UInt64, length: UInt32, to buffer: inout StreamBuffer) {
        precondition(
            length > 0 && (start | UInt64(length)) & RecordFlags.mask == 0
                && table.contains(block, offset: start, length: UInt64(length)), "A request is for pages of its block")
        let isNamed = block != lastBlock
        head(
            isNamed ? ReturnType.requestNamed : ReturnType.request, isNamed ? 13 + table.nameLength(of: block) : 12,
            to: &buffer)
        buffer.append(start)
        buffer.append(length)
        if isNamed { table.appendName(of: block, to: &buffer) }
        lastBlock = block
    }

    private func number(_ type: UInt16, _ value: UInt32, to buffer: inout StreamBuffer) {
        head(type, 4, to: &buffer)
        buffer.append(value)
    }

    private func head(_ type: UInt16, _ length: Int, to buffer: inout StreamBuffer) {
        buffer.append(type)
        buffer.append(UInt16(length))
    }
}
