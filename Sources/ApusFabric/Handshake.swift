public import ApusSystem
public import ApusWire

/// A connection after its handshake: both halves, and what was agreed.
///
/// ```
///   dialler                         listener
///      | -- hello(versions, role) ---> |      one connection per role: control, lanes, (urgent)
///      | <-- welcome(version) -------- |      or refusal(code, text), then the connection closes
/// ```
// Frozen, so that its halves can be taken apart in other modules.
@frozen public struct Connection: ~Copyable, Sendable {
    public var sender: FrameSender
    public var receiver: FrameReceiver
    public let hello: Hello
    public let features: Features
    public var socket: Socket { sender.socket }

    /// One that has been used for something else, and is for something else from here on.
    public init(
        sender: consuming FrameSender, receiver: consuming FrameReceiver, hello: Hello, features: Features
    ) {
        self.sender = sender
        self.receiver = receiver
        self.hello = hello
        self.features = features
    }

    /// Both halves, boxed for the threads that will own them.
    consuming func halves() -> (OneShot<FrameSender>, OneShot<FrameReceiver>) {
        (OneShot(sender), OneShot(receiver))
    }
}

public enum FabricLimits {
    /// A peer that has not finished its handshake by then is cut off.
    public static let handshakeMs = 5_000.0
    /// A TCP peer that acknowledges nothing for so long is dead.
    public static let deadAfterMs = 10_000
    /// Handshakes under way at once; further connections wait in the kernel's backlog.
    public static let handshakesAtOnce = 32
}

extension Role {
    /// The longest frame that the listener, or the dialler, receives on a connection of this role.
    func longest(atListener: Bool) -> FrameKind {
        switch self {
        case .control: .control
        case .lane: atListener ? .batch : .credit
        case .urgent: atListener ? .batch : .residence
        case .probe: atListener ? .stream : .credit
        }
    }
}

extension Connection {
    /// Connects to an agent and shakes hands. Blocks for at most twice `timeoutMs`.
    public static func dial(
        _ endpoint: Endpoint, _ hello: Hello, timeoutMs: Double = FabricLimits.handshakeMs
    ) throws(FabricError) -> Connection {
        let socket = try fabric { () throws(SystemError) in
            let socket = try Socket.connect(to: endpoint, timeoutMs: timeoutMs)
            if case .tcp = endpoint { try socket.setTCP(deadAfterMs: FabricLimits.deadAfterMs) }
            try socket.setTimeout(receiveMs: timeoutMs, sendMs: timeoutMs)
            return socket
        }
        var sender = try FrameSender(socket)
        var receiver = FrameReceiver(socket, longest: hello.role.longest(atListener: false))
        try sender.send(.hello, hello.bytes.rawBytes)
        guard let answer = try receiver.receive() else { throw .closed }
        let features: Features
        switch answer.kind {
        case .welcome:
            let welcome = try frame { () throws(FrameError) in try Welcome(receiver.payload) }
            guard hello.versions.contains(welcome.version) else {
                throw .frame(.badPayload(.welcome, "version \(welcome.version)"))
            }
            features = welcome.features.intersection(hello.features)
        case .refusal:
            throw .refused(try frame { () throws(FrameError) in try Refusal(receiver.payload) })
        default:
            throw .frame(.unexpectedKind(answer.kind))
        }
        try fabric { () throws(SystemError) in try socket.setTimeout(receiveMs: 0, sendMs: 0) }
        return Connection(sender: sender, receiver: receiver, hello: hello, features: features)
    }

    /// The listener's side: reads the hello, and answers it as `decide` says.
    public static func answer(
        _ socket: Socket, timeoutMs: Double = FabricLimits.handshakeMs, _ decide: (Hello) -> Refusal?
    ) throws(FabricError) -> Connection {
        try fabric { () throws(SystemError) in try socket.setTimeout(receiveMs: timeoutMs, sendMs: timeoutMs) }
        var sender = try FrameSender(socket)
        // Its role is known only after the hello, so the receiver is made for the longest frame a hello may precede.
        var first = FrameReceiver(socket, longest: .hello)
        let frame0: FrameHeader
        do throws(FabricError) {
            guard let frame = try first.receive() else { throw .closed }
            frame0 = frame
        } catch {
            // In our own format, so that the other version sees ours and can say so.
            if case .frame(.version(let version)) = error {
                try sender.send(
                    .refusal, Refusal.version("frame format \(FrameHeader.version)", "\(version)").bytes.rawBytes)
            }
            throw error
        }
        guard frame0.kind == .hello else { throw .frame(.unexpectedKind(frame0.kind)) }
        let hello = try frame { () throws(FrameError) in try Hello(first.payload) }
        guard let version = hello.commonVersion() else {
            let refusal = Refusal.version("protocol \(Hello.versions)", "\(hello.versions)")
            try sender.send(.refusal, refusal.bytes.rawBytes)
            throw .refused(refusal)
        }
        if let refusal = decide(hello) {
            try sender.send(.refusal, refusal.bytes.rawBytes)
            throw .refused(refusal)
        }
        let features = hello.features.intersection(.all)
        try sender.send(.welcome, Welcome(version: version, features: features).bytes.rawBytes)
        try fabric { () throws(SystemError) in try socket.setTimeout(receiveMs: 0, sendMs: 0) }
        let receiver = FrameReceiver(continuing: first, longest: hello.role.longest(atListener: true))
        return Connection(sender: sender, receiver: receiver, hello: hello, features: features)
    }
}

extension Refusal {
    static func version(_ ours: String, _ theirs: String) -> Refusal {
        Refusal(
            .version,
            "This agent speaks \(ours), the peer \(theirs). Install the same release of Apus on both hosts.")
    }
}

/// Runs system calls, with their errors as the fabric's.
func fabric<R>(_ body: () throws(SystemError) -> R) throws(FabricError) -> R {
    do throws(SystemError) { return try body() } catch { throw FabricError(error) }
}

/// Reads a payload, with its errors as the fabric's.
func frame<R>(_ body: () throws(FrameError) -> R) throws(FabricError) -> R {
    do throws(FrameError) { return try body() } catch { throw .frame(error) }
}
