public import ApusSystem
public import ApusWire

/// Accepts connections from other agents and shakes hands with them, each on a short-lived thread.
public final class Reception: Sendable {
    public let endpoint: Endpoint
    private let listener: Listener
    private let underWay = Monitor(0)
    private let decide: @Sendable (Hello) -> Refusal?
    private let accepted: @Sendable (consuming Connection) -> Void

    /// Starts to listen.
    /// - Parameters:
    ///   - decide: says why a hello is not welcome; nil when it is. Called on any thread.
    ///   - accepted: receives the connection; must not block for long. Called on any thread.
    public init(
        _ endpoint: Endpoint, decide: @escaping @Sendable (Hello) -> Refusal?,
        accepted: @escaping @Sendable (consuming Connection) -> Void
    ) throws(SystemError) {
        listener = try Listener(endpoint)
        self.endpoint = listener.endpoint
        self.decide = decide
        self.accepted = accepted
        let listener = self.listener
        _ = try WorkerThread("apus-accept") { [weak self] in
            while let socket = Reception.next(listener) { self?.welcome(socket) }
        }
    }

    public func shutDown() { listener.shutDown() }

    private static func next(_ listener: Listener) -> Socket? {
        while true {
            do throws(SystemError) { return try listener.accept() } catch {
                // Out of descriptors or memory: the peer will be served when there are some again.
                guard !error.isBrokenConnection else { continue }
                guard error.isExhaustion else { return nil }
                pause(ms: 50)
            }
        }
    }

    private func welcome(_ socket: Socket) {
        _ = underWay.wait { count -> Void? in
            guard count < FabricLimits.handshakesAtOnce else { return nil }
            count += 1
            return ()
        }
        let started = try? WorkerThread("apus-greet") { [self] in
            defer { underWay.update { $0 -= 1 } }
            try? socket.setTCP(deadAfterMs: FabricLimits.deadAfterMs)
            // A peer that fails its handshake has been told so; there is nobody else to tell.
            if let connection = try? Connection.answer(socket, decide) { accepted(connection) }
        }
        if started == nil { underWay.update { $0 -= 1 } }
    }
}
