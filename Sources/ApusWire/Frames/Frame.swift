public import ApusSystem

/// What a frame carries. Zero is no kind.
public enum FrameKind: UInt8, Sendable, CaseIterable {
    /// First frame of a connection, from the side that connected: ``Hello``.
    case hello = 1
    /// Answer to hello: ``Welcome``.
    case welcome = 2
    /// Answer to hello, then the connection closes: u16 code, UTF-8 text.
    case refusal = 3
    /// A control message as JSON (`SessionMessage`). Control connection only.
    case control = 4
    /// Bytes of QEMU's own stream. Written to the destination's QEMU once every lane has passed fence `epoch`.
    case stream = 5
    /// Bytes of QEMU's return path, towards the source.
    case returnPath = 6
    /// The RAM blocks of the VM: ``LayoutPayload``. Before any batch can be decoded.
    case layout = 7
    /// Pages: `BatchPayload`. Lanes only.
    case batch = 8
    /// All batches of this lane before it are older than fence `epoch`. No payload.
    case fence = 9
    /// Receiver to sender of a lane: u64 bytes received on this connection, u64 batches and updates applied since the
    /// lane's first connection.
    case credit = 10
    /// Receiver to sender of a lane: u64, which entries of the audit are to be sent again, bit by bit.
    case want = 11
    /// The sender of a lane has nothing more to say. No payload.
    case end = 12
    /// Changed lines of pages: `UpdatePayload`. Lanes only, and only for pages that `patchable` has named.
    case update = 13
    /// Receiver to sender of a lane, once: the pages that updates may name, ``PatchablePayload``.
    case patchable = 14
    /// A stream frame in small: u32 bytes of the stream, then an LZ4 block. With feature `lz4` only.
    case squeezedStream = 15
    /// Sender to receiver of a lane, the guest being stopped: digests of pages, ``AuditPayload``. Answered by `want`.
    case audit = 16
    /// Pages that the destination lacks, ``ResidencePayload``. Lane 0, to the destination: its memory is like this from
    /// fence `epoch` on. Push connection, to the source: send these.
    case residence = 17
    /// Pages that somebody at the destination waits for, ``WantedPayload``. Urgent connection, answered by `batch`.
    case wanted = 18
    /// The sender of a lane has sent its last fence and pushes missing pages on this connection from here on. The receiver
    /// answers with the same: what it credits from there on is of these. No payload.
    case handOver = 19
    /// Pages whose content the receiver has or can read: ``ReferencePayload``. Lanes only, and only when agreed on.
    case reference = 24
    /// Receiver to sender of a lane: what became of one frame of references, ``ReferenceAnswer``.
    case referenceAnswer = 25
    /// Destination to source, on the control connection, before `ready`: hints of what it holds, ``HeldPayload``.
    case held = 26
}

public enum FrameError: Error, Equatable, Sendable {
    case notAFrame(UInt32)
    case version(UInt8)
    case headerDamaged
    case unknownKind(UInt8)
    case unexpectedKind(FrameKind)
    case tooLong(kind: FrameKind, length: Int, limit: Int)
    case wrongLength(kind: FrameKind, length: Int)
    case payloadDamaged(kind: FrameKind, sequence: UInt64)
    case outOfSequence(want: UInt64, got: UInt64)
    case badPayload(FrameKind, String)
}

/// The 40 bytes before every payload; integers little-endian.
///
/// ```
///   0  u32  magic "APUS"
///   4  u8   version of the frame format: 1
///   5  u8   kind
///   6  u16  lane
///   8  u32  payload length
///  12  u32  epoch
///  16  u64  sequence in this direction of this connection, from 1
///  24  u64  XXH3 of the payload
///  32  u64  XXH3 of bytes 0 to 31
/// ```
///
/// The header is summed apart from the payload, so that its length can be believed before the payload arrives.
public struct FrameHeader: Equatable, Sendable {
    public static let byteCount = 40
    public static let magic: UInt32 = 0x5355_5041
    public static let version: UInt8 = 1

    public var kind: FrameKind
    public var lane: UInt16
    public var length: Int
    public var epoch: UInt32
    public var sequence: UInt64
    public var checksum: UInt64

    public init(kind: FrameKind, lane: UInt16, length: Int, epoch: UInt32, sequence: UInt64, checksum: UInt64) {
        self.kind = kind
        self.lane = lane
        self.length = length
        self.epoch = epoch
        self.sequence = sequence
        self.checksum = checksum
    }

    /// Longest payload of a kind. A peer that announces more is refused before a byte of it is read.
    public static func lengthMax(of kind: FrameKind) -> Int {
        switch kind {
        case .hello, .welcome: 64
        case .refusal: 1024
        // An offer carries a VM's definition.
        case .control: 1 << 20
        case .stream, .returnPath, .squeezedStream: 64 << 10
        case .layout: 512 << 10
        case .batch: BatchLimits.payloadBytesMax
        case .fence, .end, .handOver: 0
        case .credit: 16
        case .want: WantPayload.byteCount
        case .audit: AuditPayload.bytesMax
        case .update: BatchLimits.updateBytesMax
        case .patchable: PatchablePayload.bytesMax
        case .residence: ResidencePayload.bytesMax
        case .wanted: WantedPayload.bytesMax
        case .reference: ReferencePayload.bytesMax
        case .referenceAnswer: ReferenceAnswer.byteCount
        case .held: HeldPayload.bytesMax
        }
    }

    /// Writes the header to the front of `buffer`, which holds at least 40 bytes.
    public func store(in buffer: inout PageBuffer) {
        var bytes = buffer.mutableBytes
        bytes.store(littleEndian: Self.magic, at: 0)
        bytes.store(littleEndian: Self.version, at: 4)
        bytes.store(littleEndian: kind.rawValue, at: 5)
        bytes.store(littleEndian: lane, at: 6)
        bytes.store(littleEndian: UInt32(length), at: 8)
        bytes.store(littleEndian: epoch, at: 12)
        bytes.store(littleEndian: sequence, at: 16)
        bytes.store(littleEndian: checksum, at: 24)
        let sum = Checksum.of(buffer.bytes.extracting(0..<32))
        var again = buffer.mutableBytes
        again.store(littleEndian: sum, at: 32)
    }

    /// Reads and checks a header; the payload is checked with ``check(_:)``.
    public init(_ bytes: RawSpan) throws(FrameError) {
        precondition(bytes.byteCount >= Self.byteCount)
        let magic = bytes.littleEndian(at: 0, as: UInt32.self)
        guard magic == Self.magic else { throw .notAFrame(magic) }
        // Before the sum: another version may place its sum elsewhere.
        guard bytes.byte(at: 4) == Self.version else { throw .version(bytes.byte(at: 4)) }
        guard bytes.littleEndian(at: 32, as: UInt64.self) == Checksum.of(bytes.extracting(0..<32)) else {
            throw .headerDamaged
        }
        guard let kind = FrameKind(rawValue: bytes.byte(at: 5)) else { throw .unknownKind(bytes.byte(at: 5)) }
        let length = Int(bytes.littleEndian(at: 8, as: UInt32.self))
        let limit = Self.lengthMax(of: kind)
        guard length <= limit else { throw .tooLong(kind: kind, length: length, limit: limit) }
        self.init(
            kind: kind, lane: bytes.littleEndian(at: 6), length: length, epoch: bytes.littleEndian(at: 12),
            sequence: bytes.littleEndian(at: 16), checksum: bytes.littleEndian(at: 24))
    }

    /// Checks the payload that followed this header.
    public func check(_ payload: RawSpan) throws(FrameError) {
        guard payload.byteCount == length else { throw .wrongLength(kind: kind, length: payload.byteCount) }
        guard Checksum.of(payload) == checksum else { throw .payloadDamaged(kind: kind, sequence: sequence) }
    }
}
