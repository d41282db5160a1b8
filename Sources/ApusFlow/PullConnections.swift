internal import ApusFabric
internal import ApusSystem
internal import ApusWire

/// The two connections that missing pages travel on, each with its thread.
final class PullConnections: Sendable {
    private let sockets = Monitor<[UInt16: Socket]>([:])

    var areBoth: Bool { sockets.read { $0.count == 2 } }

    /// Gives a connection to a thread of its own; a former one of the same kind is dropped.
    ///
    /// - Parameter body: `isCurrent` tells whether the connection, when it has broken, is missed: it was neither replaced nor
    ///   ended.
    func begin(
        _ connection: consuming Connection, _ name: String, nice: Int32 = 0, rank: Int32 = 0,
        _ body: @escaping @Sendable (consuming Connection, _ isCurrent: () -> Bool) -> Void
    ) throws(SystemError) {
        let lane = connection.hello.lane
        let socket = connection.socket
        let former = sockets.update { sockets in
            defer { sockets[lane] = socket }
            return sockets[lane]
        }
        former?.shutDown()
        let box = OneShot(connection)
        _ = try WorkerThread(name, nice: nice, rank: rank) { [self] in
            guard let connection = box.take() else { return }
            body(connection) { self.sockets.read { $0[lane] === socket } }
            sockets.update { if $0[lane] === socket { $0[lane] = nil } }
        }
    }

    /// Ends them, until new ones begin.
    func end() {
        let all = sockets.update { sockets in
            defer { sockets = [:] }
            return sockets
        }
        for socket in all.values { socket.shutDown() }
    }
}
