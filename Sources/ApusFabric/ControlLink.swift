public import ApusSystem
public import ApusWire

/// A control connection in use: frames go out through a bounded queue and a writer thread, frames come in on a reader
/// thread. Neither side of it ever runs on the cooperative pool.
public final class ControlLink: Sendable {
    /// A frame with its payload.
    public struct Message: Sendable {
        public var kind: FrameKind
        public var epoch: UInt32
        public var bytes: [UInt8]
        public init(_ kind: FrameKind, epoch: UInt32 = 0, _ bytes: [UInt8]) {
            self.kind = kind
            self.epoch = epoch
            self.bytes = bytes
        }
    }

    /// Bulk frames that wait to be sent; with 64 KiB of stream each, 1 MiB.
    public static let bulkDepth = 16
    /// Posted frames that wait to be sent. A peer that reads none of so many is not there.
    public static let postedDepth = 256

    private struct Outbox: Sendable {
        var posted: [Message] = []
        var bulk: [Message] = []
        var isClosed = false
    }

    private let socket: Socket
    private let outbox = Monitor(Outbox())
    private let sent = Monitor<UInt64>(0)
    private let heard = Monitor(Instant.now())

    /// Starts both threads.
    /// - Parameters:
    ///   - received: called on the reader thread, frame by frame; may block, which holds the peer back.
    ///   - closed: called once, when the connection is over; nil when the peer closed it in good order.
    public init(
        _ connection: consuming Connection, received: @escaping @Sendable (ControlLink, Message) -> Void,
        closed: @escaping @Sendable (ControlLink, FabricError?) -> Void
    ) throws(SystemError) {
        socket = connection.socket
        let squeezes = connection.features.contains(.lz4)
        let (outBox, inBox) = connection.halves()
        let failure = Monitor<FabricError?>(nil)
        _ = try WorkerThread("apus-ctl-out") { [self] in
            guard var sender = outBox.take() else { return }
            do throws(FabricError) { try write(&sender, squeezes: squeezes) } catch { failure.update { $0 = error } }
            outbox.update { $0.isClosed = true }
            sender.socket.shutDown()
        }
        _ = try WorkerThread("apus-ctl-in") { [self] in
            guard var receiver = inBox.take() else { return }
            var room = PageBuffer(byteCount: StreamSqueezer.byteCountMax)
            do throws(FabricError) {
                while let frame = try receiver.receive() {
                    heard.update { $0 = Instant.now() }
                    received(self, try StreamSqueezer.message(frame, receiver.payload, &room))
                }
            } catch { failure.update { if $0 == nil { $0 = error } } }
            outbox.update { $0.isClosed = true }
            closed(self, failure.read { $0 })
        }
    }

    /// Queues a bulk frame; blocks while the queue is full, so call it from a thread. False once the link is closed.
    public func send(_ message: Message) -> Bool {
        outbox.wait { box -> Bool? in
            if box.isClosed { return false }
            guard box.bulk.count < Self.bulkDepth else { return nil }
            box.bulk.append(message)
            return true
        } ?? false
    }

    /// Queues a frame ahead of all bulk frames; never blocks. False once the link is closed; a link whose peer has
    /// stopped reading is cut.
    @discardableResult
    public func post(_ message: Message) -> Bool {
        let (queued, overflows) = outbox.update { box in
            if box.isClosed { return (false, false) }
            box.posted.append(message)
            return (true, box.posted.count > Self.postedDepth)
        }
        if overflows { cut() }
        return queued && !overflows
    }

    /// Bytes written so far, frames included.
    public var bytesSent: UInt64 { sent.read { $0 } }
    /// When the peer was heard of last.
    public var lastHeard: Instant { heard.read { $0 } }
    /// The peer's address as this side sees it, without its port; nil for a UNIX socket.
    public var peerHost: String? { socket.peerHost }
    public var isClosed: Bool { outbox.read { $0.isClosed } }

    /// Sends what is queued, then closes.
    public func finish() { outbox.update { $0.isClosed = true } }

    /// Closes at once.
    public func cut() {
        outbox.update { $0 = Outbox(isClosed: true) }
        socket.shutDown()
    }

    /// Runs until the outbox is closed and empty.
    private func write(_ sender: inout FrameSender, squeezes: Bool) throws(FabricError) {
        var room = PageBuffer(byteCount: StreamSqueezer.byteCountMax)
        while let message = next() {
            let count: Int
            if squeezes, let byteCount = StreamSqueezer.squeeze(message, into: &room) {
                count = try Self.transmit(&sender, message, room, byteCount)
            } else {
                count = try sender.send(message.kind, epoch: message.epoch, message.bytes.rawBytes)
            }
            sent.update { $0 += UInt64(count) }
        }
    }

    private static func transmit(
        _ sender: inout FrameSender, _ message: Message, _ room: borrowing PageBuffer, _ byteCount: Int
    ) throws(FabricError) -> Int {
        try sender.send(.squeezedStream, epoch: message.epoch, room.bytes.extracting(0..<byteCount))
    }

    private func next() -> Message? {
        outbox.wait { box -> Message?? in
            if !box.posted.isEmpty { return box.posted.removeFirst() }
            if !box.bulk.isEmpty { return box.bulk.removeFirst() }
            return box.isClosed ? .some(nil) : nil
        } ?? nil
    }
}

/// The form of stream frames on the wire: device state is mostly zeros and text, and the guest stands still while it
/// travels.
public enum StreamSqueezer {
    public static let byteCountMax = FrameHeader.lengthMax(of: .stream)
    /// Below this a frame costs more than its bytes.
    private static let byteCountMin = 512

    /// Fills `room` with the payload of a squeezed frame; nil: not smaller, or no stream frame.
    public static func squeeze(_ message: ControlLink.Message, into room: inout PageBuffer) -> Int? {
        guard message.kind == .stream, message.bytes.count >= byteCountMin else { return nil }
        let source = message.bytes.rawBytes
        guard let count = LZ4.squeeze(source, into: &room, at: 4, limit: source.byteCount * 7 / 8) else { return nil }
        var bytes = room.mutableBytes
        bytes.store(littleEndian: UInt32(source.byteCount), at: 0)
        return 4 + count
    }

    /// The message of a frame, as it was before it was squeezed.
    public static func message(
        _ frame: FrameHeader, _ payload: RawSpan, _ room: inout PageBuffer
    ) throws(FabricError) -> ControlLink.Message {
        guard frame.kind == .squeezedStream else {
            return .init(frame.kind, epoch: frame.epoch, payload.bytesCopied)
        }
        guard payload.byteCount > 4 else {
            throw .frame(.wrongLength(kind: .squeezedStream, length: payload.byteCount))
        }
        let byteCount = Int(payload.littleEndian(at: 0, as: UInt32.self))
        guard byteCount <= byteCountMax,
            LZ4.expand(payload.extracting(4..<payload.byteCount), into: &room, byteCount: byteCount)
        else { throw .frame(.badPayload(.squeezedStream, "\(byteCount) bytes do not come out of it")) }
        return .init(.stream, epoch: frame.epoch, room.bytes.extracting(0..<byteCount).bytesCopied)
    }
}
