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

    /// Frames that wait to be sent; with 64 KiB of stream each, 1 MiB.
    public static let queueDepth = 16

    private let socket: Socket
    private let outgoing = Channel<Message>(capacity: ControlLink.queueDepth)
    private let ended = Monitor<FabricError?>(nil)
    private let wireBytes = Monitor<UInt64>(0)

    /// Starts both threads.
    /// - Parameters:
    ///   - received: called on the reader thread, frame by frame; may block, which holds the peer back.
    ///   - closed: called once, when the connection is over; nil when the peer closed it in good order.
    public init(
        _ connection: consuming Connection, received: @escaping @Sendable (Message) -> Void,
        closed: @escaping @Sendable (FabricError?) -> Void
    ) throws(SystemError) {
        socket = connection.socket
        let (outgoing, ended, wireBytes) = (self.outgoing, self.ended, self.wireBytes)
        let (outBox, inBox) = connection.halves()
        _ = try WorkerThread("apus-ctl-out") {
            guard var sender = outBox.take() else { return }
            while let message = outgoing.receive() {
                do throws(FabricError) {
                    let count = try sender.send(message.kind, epoch: message.epoch, message.bytes.rawBytes)
                    wireBytes.update { $0 += UInt64(count) }
                } catch {
                    ended.update { if $0 == nil { $0 = error } }
                    sender.socket.shutDown()
                    outgoing.close()
                }
            }
            // Everything is sent: the peer sees the end of the stream.
            sender.socket.shutDown()
        }
        _ = try WorkerThread("apus-ctl-in") {
            guard var receiver = inBox.take() else { return }
            var failure: FabricError?
            do throws(FabricError) {
                while let frame = try receiver.receive() {
                    received(Message(frame.kind, epoch: frame.epoch, receiver.payload.bytesCopied))
                }
            } catch { failure = error }
            outgoing.close()
            closed(ended.read { $0 } ?? failure)
        }
    }

    /// Queues a frame; blocks while the queue is full, so call it from a thread. False once the link is closed.
    @discardableResult
    public func send(_ message: Message) -> Bool { outgoing.send(message) == nil }

    /// Bytes written so far.
    public var bytesSent: UInt64 { wireBytes.read { $0 } }

    /// Sends what is queued, then closes.
    public func finish() { outgoing.close() }

    /// Closes at once.
    public func cut() {
        outgoing.close()
        socket.shutDown()
    }
}
