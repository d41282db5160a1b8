import ApusSystem
import Foundation
import NIOCore
import NIOPosix

/// One connection to a QEMU monitor.
///
/// Any number of tasks may run commands at once; replies find their caller by id. When the connection ends, every
/// pending and later command throws `QMPError.closed` (or what broke the connection) and every event stream ends.
/// A QEMU monitor socket serves one connection at a time: a second one connects but is not greeted, so `connect` times
/// out waiting for `greeting`.
public final class QMPClient: Sendable {
    public let path: String
    /// From the greeting.
    public let version: QEMUVersion
    /// The process that listens on the socket, as the kernel says.
    public let peerPID: Int32

    private let switchboard: Switchboard
    private let channel: any Channel

    private init(path: String, version: QEMUVersion, peerPID: Int32, switchboard: Switchboard, channel: any Channel) {
        self.path = path
        self.version = version
        self.peerPID = peerPID
        self.switchboard = switchboard
        self.channel = channel
    }

    deinit { channel.close(promise: nil) }

    /// Connects, reads the greeting and leaves capability negotiation.
    ///
    /// - Throws: `QMPError`; `CancellationError`.
    public static func connect(path: String, timeout: Duration = .seconds(5)) async throws -> QMPClient {
        let peer: LocalPeer
        do {
            peer = try LocalPeer.connect(path: path)
        } catch {
            throw QMPError.connectFailed(path: path, reason: error.reason)
        }
        let switchboard = Switchboard()
        let channel = try await ClientBootstrap(group: MultiThreadedEventLoopGroup.singleton)
            .channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    let lines = ByteToMessageHandler(LineDecoder(), maximumBufferSize: QMPLimits.messageBytesMax)
                    try channel.pipeline.syncOperations.addHandlers(lines, LineHandler(switchboard))
                }
            }
            .withConnectedSocket(peer.descriptor)
            .get()
        do {
            let line = try await switchboard.line(
                answering: Switchboard.greetingID, command: "greeting", timeout: timeout, on: channel.eventLoop,
                send: {})
            guard case .greeting(let version) = try Message(line) else { throw QMPError.malformed(what: "no greeting") }
            let client = QMPClient(
                path: path, version: version, peerPID: peer.pid, switchboard: switchboard, channel: channel)
            _ = try await client.execute(.capabilities, timeout: timeout)
            return client
        } catch {
            channel.close(promise: nil)
            throw error
        }
    }

    /// Runs one command and decodes its reply.
    ///
    /// - Throws: `QMPError`; `CancellationError`, after which the command may still take effect in QEMU.
    @discardableResult
    public func execute<Reply>(
        _ command: QMPCommand<Reply>, timeout: Duration = QMPLimits.commandTimeout
    ) async throws -> Reply {
        let id = switchboard.newID()
        let request = Request(
            execute: command.name, arguments: command.arguments.isEmpty ? nil : command.arguments, id: id)
        var bytes = ByteBuffer(bytes: try JSONEncoder().encode(request))
        bytes.writeInteger(UInt8(ascii: "\n"))
        let line = try await switchboard.line(
            answering: id, command: command.name, timeout: timeout, on: channel.eventLoop,
            send: { channel.writeAndFlush(bytes, promise: nil) })
        do {
            return try JSONDecoder().decode(Returned<Reply>.self, from: line).return
        } catch {
            throw QMPError.malformed(what: "reply to \(command.name) has another shape: \(Message.excerpt(line))")
        }
    }

    /// Events from now on, for this subscriber alone; ends with the connection. A subscriber that leaves more than
    /// `limit` events unread loses the oldest (see `eventsDropped`).
    public func events(buffering limit: Int = QMPLimits.eventsBufferedMax) -> AsyncStream<QMPEvent> {
        switchboard.subscribe(buffering: limit)
    }

    /// Events that subscribers lost by not reading.
    public var eventsDropped: UInt64 { switchboard.eventsDropped }

    /// Why the connection ended; nil while it lives.
    public var ended: QMPError? { switchboard.ended }

    /// Returns when the connection has ended, or the task is cancelled.
    public func waitUntilClosed() async {
        for await _ in switchboard.subscribe(buffering: 1) {}
    }

    /// Ends the connection; QEMU and its guest go on.
    public func close() async {
        switchboard.end(.closed)
        try? await channel.close()
    }
}
