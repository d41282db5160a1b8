public import ApusSystem
public import ApusWire

/// Why a connection to another agent does not work (any more).
public enum FabricError: Error, Equatable, Sendable, CustomStringConvertible {
    case system(SystemError)
    case frame(FrameError)
    /// The peer does not want this connection.
    case refused(Refusal)
    /// The peer closed the connection, or it broke.
    case closed
    /// Nothing arrived, or nothing could be sent, in time.
    case timedOut
    /// A page was on its way when the connection was lost, and only QEMU can read it.
    case unreadable(page: UInt32)
    /// Pages that the receiver holds differ from the sender's, although they were sent again and again.
    case auditFailed(pages: Int)

    init(_ error: SystemError) {
        self = error.isTimeout ? .timedOut : error.isBrokenConnection ? .closed : .system(error)
    }

    /// The connection is gone; another one may do. Everything else is the peer's doing, or ours.
    public var isLoss: Bool {
        switch self {
        case .closed, .timedOut, .system: true
        case .frame, .refused, .auditFailed, .unreadable: false
        }
    }

    public var description: String {
        switch self {
        case .system(let error): "\(error)."
        case .frame(.version(let version)):
            "It speaks version \(version) of the frame format, this agent version \(FrameHeader.version)."
        case .frame(let error): "The peer sent something that is not an Apus frame: \(error)."
        case .refused(let refusal): refusal.text
        case .closed: "The connection was closed."
        case .unreadable(let page): "Page \(page) cannot be read."
        case .auditFailed(let pages): "\(pages) pages differ."
        case .timedOut: "The connection timed out."
        }
    }
}

/// The sending half of a connection. One thread owns it.
public struct FrameSender: ~Copyable, Sendable {
    public let socket: Socket
    private var header = PageBuffer(byteCount: FrameHeader.byteCount)
    private var sum: RunningChecksum
    private var sequence: UInt64 = 0

    public init(_ socket: Socket) throws(FabricError) {
        self.socket = socket
        do throws(SystemError) { sum = try RunningChecksum() } catch { throw FabricError(error) }
    }

    /// Sends one frame whose payload lies in two pieces; returns the bytes put on the link. Blocks.
    @discardableResult
    public mutating func send(
        _ kind: FrameKind, lane: UInt16 = 0, epoch: UInt32 = 0, _ first: RawSpan, _ second: RawSpan = RawSpan()
    ) throws(FabricError) -> Int {
        let length = first.byteCount + second.byteCount
        precondition(length <= FrameHeader.lengthMax(of: kind))
        sequence += 1
        FrameHeader(
            kind: kind, lane: lane, length: length, epoch: epoch, sequence: sequence,
            checksum: second.byteCount == 0 ? Checksum.of(first) : sum.of(first, second)
        ).store(in: &header)
        do throws(SystemError) {
            try socket.write(header.bytes, first, second)
        } catch { throw FabricError(error) }
        return FrameHeader.byteCount + length
    }

    @discardableResult
    public mutating func send(_ kind: FrameKind, lane: UInt16 = 0, epoch: UInt32 = 0) throws(FabricError) -> Int {
        try send(kind, lane: lane, epoch: epoch, RawSpan())
    }
}

/// The receiving half of a connection. One thread owns it. Nothing is allocated after the start.
public struct FrameReceiver: ~Copyable, Sendable {
    public let socket: Socket
    private var header = PageBuffer(byteCount: FrameHeader.byteCount)
    private var buffer: PageBuffer
    private var length = 0
    private var sequence: UInt64 = 0

    /// - Parameter longest: the kind with the longest payload that may arrive here.
    public init(_ socket: Socket, longest: FrameKind) {
        self.socket = socket
        buffer = PageBuffer(byteCount: max(FrameHeader.lengthMax(of: longest), 4096))
    }

    /// Goes on where another receiver of the same connection stopped, with room for longer frames.
    init(continuing other: borrowing FrameReceiver, longest: FrameKind) {
        self.init(other.socket, longest: longest)
        sequence = other.sequence
    }

    /// The payload of the frame received last, checked against its sum.
    public var payload: RawSpan {
        @_lifetime(borrow self) borrowing get { buffer.bytes.extracting(0..<length) }
    }

    /// Blocks for the next frame; nil when the peer closed between two frames.
    public mutating func receive() throws(FabricError) -> FrameHeader? {
        do throws(SystemError) {
            guard try socket.readExactly(into: &header, 0..<FrameHeader.byteCount) else { return nil }
        } catch { throw FabricError(error) }
        return try finish()
    }

    /// Like ``receive()``, but nil at once when no frame is waiting. Only for frames that are small and arrive whole.
    public mutating func receiveIfAny() throws(FabricError) -> FrameHeader? {
        do throws(SystemError) {
            guard let count = try socket.readIfAny(into: &header, 0..<FrameHeader.byteCount) else { return nil }
            guard count > 0 else { throw .connectionReset }
            if count < FrameHeader.byteCount {
                guard try socket.readExactly(into: &header, count..<FrameHeader.byteCount) else {
                    throw .connectionReset
                }
            }
        } catch { throw FabricError(error) }
        return try finish()
    }

    private mutating func finish() throws(FabricError) -> FrameHeader {
        let frame: FrameHeader
        do throws(FrameError) {
            frame = try FrameHeader(header.bytes)
            guard frame.sequence == sequence + 1 else {
                throw .outOfSequence(want: sequence + 1, got: frame.sequence)
            }
            guard frame.length <= buffer.byteCount else { throw .unexpectedKind(frame.kind) }
        } catch { throw .frame(error) }
        sequence = frame.sequence
        length = frame.length
        do throws(SystemError) {
            if length > 0, try !socket.readExactly(into: &buffer, 0..<length) { throw .connectionReset }
        } catch { throw FabricError(error) }
        do throws(FrameError) { try frame.check(payload) } catch { throw .frame(error) }
        return frame
    }
}
