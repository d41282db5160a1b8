public import ApusSystem
public import ApusWire

/// What a link between two agents is like at the moment.
public struct LinkQuality: Sendable, Equatable {
    /// Bytes per second that a lane can put on it.
    public var bytesPerS: Double
    /// Shortest time from a question to its answer.
    public var roundTripMs: Double
    public init(bytesPerS: Double, roundTripMs: Double) {
        self.bytesPerS = bytesPerS
        self.roundTripMs = roundTripMs
    }
}

/// Measures a link with bytes that the other agent throws away.
///
/// ```
///   prober                        the other agent
///     | -- fence ---------------> |
///     | <------ credit: 0 bytes - |   some times; the shortest round trip counts
///     | -- stream, stream, ... -> |   for as long as the measurement takes, or up to the limit
///     | -- fence ---------------> |
///     | <-- credit: bytes so far  |   bytes per second = these bytes / (time until here - round trip)
///     | -- control: a question -> |   on another connection: what the agent holds, of which this module knows nothing
///     | <------ control: answer - |
/// ```
public enum LinkProbe {
    /// One connection may send no more than this, and no longer; then it is cut.
    public static let bytesMax: UInt64 = 512 << 20
    public static let secondsMax = 10.0
    /// Probes that an agent answers at once.
    public static let atOnceMax = 2

    private static let questions = 5
    private static let frameBytes = FrameHeader.lengthMax(of: .stream)

    /// Blocks for about `ms` and a few round trips.
    public static func measure(_ endpoint: Endpoint, ms: Double) throws(FabricError) -> LinkQuality {
        var connection = try Connection.dial(endpoint, Hello(role: .probe))
        let socket = connection.socket
        defer { socket.shutDown() }
        try fabric { () throws(SystemError) in
            try socket.setTimeout(receiveMs: secondsMax * 1000, sendMs: secondsMax * 1000)
        }
        var roundTripMs = Double.infinity
        for _ in 0..<questions {
            let asked = Instant.now()
            _ = try ask(&connection)
            roundTripMs = min(roundTripMs, Instant.now().ms(since: asked))
        }
        let noise = noise()
        let began = Instant.now()
        var sent: UInt64 = 0
        while Instant.now().ms(since: began) < ms && sent + UInt64(frameBytes) <= bytesMax {
            try connection.sender.send(.stream, noise.bytes)
            sent += UInt64(frameBytes)
        }
        let received = try ask(&connection)
        let tookMs = max(Instant.now().ms(since: began) - roundTripMs, 0.01)
        guard received == sent else { throw .frame(.badPayload(.credit, "\(received) bytes of \(sent)")) }
        return LinkQuality(bytesPerS: Double(received) / tookMs * 1000, roundTripMs: roundTripMs)
    }

    /// Asks the other agent something. Blocks until it has answered, for `secondsMax` at most.
    ///
    /// - Throws: `FabricError` `.closed` when it knows no answer.
    public static func ask(_ endpoint: Endpoint, _ question: [UInt8]) throws(FabricError) -> [UInt8] {
        var connection = try Connection.dial(endpoint, Hello(role: .probe))
        let socket = connection.socket
        defer { socket.shutDown() }
        try fabric { () throws(SystemError) in
            try socket.setTimeout(receiveMs: secondsMax * 1000, sendMs: secondsMax * 1000)
        }
        var receiver = FrameReceiver(continuing: connection.receiver, longest: .control)
        try connection.sender.send(.control, question.rawBytes)
        guard let frame = try receiver.receive() else { throw .closed }
        guard frame.kind == .control else { throw .frame(.unexpectedKind(frame.kind)) }
        return receiver.payload.bytesCopied
    }

    /// The other side; returns when the prober has gone. Blocks.
    ///
    /// - Parameter reply: to a question; nil: the connection is cut.
    public static func answer(_ connection: consuming Connection, _ reply: (_ question: [UInt8]) -> [UInt8]?) {
        let socket = connection.socket
        defer { socket.shutDown() }
        var receiver = FrameReceiver(continuing: connection.receiver, longest: .control)
        let began = Instant.now()
        var received: UInt64 = 0
        var credit = PageBuffer(byteCount: 16)
        do throws(FabricError) {
            try fabric { () throws(SystemError) in
                try socket.setTimeout(receiveMs: secondsMax * 1000, sendMs: secondsMax * 1000)
            }
            while let frame = try receiver.receive() {
                guard Instant.now().ms(since: began) < secondsMax * 1000, received <= bytesMax else { return }
                switch frame.kind {
                case .stream: received += UInt64(frame.length)
                case .fence:
                    // The second half, batches applied, stays zero.
                    var bytes = credit.mutableBytes
                    bytes.store(littleEndian: received, at: 0)
                    try connection.sender.send(.credit, credit.bytes)
                case .control:
                    guard let answer = reply(receiver.payload.bytesCopied) else { return }
                    try connection.sender.send(.control, answer.rawBytes)
                default: return
                }
            }
        } catch {
            // The prober knows; there is nobody to tell here.
        }
    }

    /// - Returns: bytes that have arrived there.
    private static func ask(_ connection: inout Connection) throws(FabricError) -> UInt64 {
        try connection.sender.send(.fence)
        guard let frame = try connection.receiver.receive() else { throw .closed }
        guard frame.kind == .credit, frame.length == 16 else { throw .frame(.unexpectedKind(frame.kind)) }
        return connection.receiver.payload.littleEndian(at: 0, as: UInt64.self)
    }

    /// Bytes that no device on the way can make smaller.
    private static func noise() -> PageBuffer {
        var source = SystemRandomNumberGenerator()
        var buffer = PageBuffer(byteCount: frameBytes)
        for offset in stride(from: 0, to: frameBytes, by: 8) { buffer.store(source.next(), at: offset) }
        return buffer
    }
}

/// Answers the probes of other agents, a few at a time.
public final class ProbeDesk: Sendable {
    private let underWay = Monitor(0)
    private let reply: @Sendable (_ question: [UInt8]) -> [UInt8]?

    /// - Parameter reply: to a question, at most 1 MiB; nil: there is none. Called on the probe's thread.
    public init(reply: @escaping @Sendable (_ question: [UInt8]) -> [UInt8]? = { _ in nil }) { self.reply = reply }

    /// Why a probe is not welcome now; nil: it is.
    public func refusal() -> Refusal? {
        guard underWay.read({ $0 }) >= LinkProbe.atOnceMax else { return nil }
        return Refusal(.busy, "This agent answers \(LinkProbe.atOnceMax) link probes already. Try again.")
    }

    /// On a thread of its own. Of those that were welcome at the same moment, the last ones are cut.
    public func answer(_ connection: consuming Connection) {
        let socket = connection.socket
        let box = OneShot(connection)
        let hasRoom = underWay.update { count in
            guard count < LinkProbe.atOnceMax else { return false }
            count += 1
            return true
        }
        guard hasRoom else { return socket.shutDown() }
        let started = try? WorkerThread("apus-probe") { [self] in
            if let connection = box.take() { LinkProbe.answer(connection, reply) }
            underWay.update { $0 -= 1 }
        }
        if started == nil { underWay.update { $0 -= 1 } }
    }
}
