internal import ApusFabric
internal import ApusSystem

/// Where the thread of a lane gets its connection, and the next one when that has broken.
///
/// ```
///             offer                    next
///   empty ------------> offered ----------------> busy
///     ^                    |                        |
///     `------ clear -------'     `--- next: it has broken; the thread waits here, with all its state
/// ```
final class LaneDock: Sendable {
    /// A connection on its way to the lane's thread.
    struct Berth: Sendable {
        let connection: OneShot<Connection>
        let socket: Socket
        /// Which set of connections it belongs to.
        let attempt: Int
        /// To a sender: frames that the receiver has applied since the lane's first.
        let applied: UInt64
    }

    private enum State: Sendable {
        case empty(applied: UInt64)
        case offered(Berth, applied: UInt64)
        case busy(Socket)
        case over
    }
    private let state = Monitor(State.empty(applied: 0))

    /// Hands a connection over. One that was offered before and not taken is dropped.
    func offer(_ connection: OneShot<Connection>, _ socket: Socket, attempt: Int, applied: UInt64 = 0) {
        let berth = Berth(connection: connection, socket: socket, attempt: attempt, applied: applied)
        state.update { state in
            switch state {
            case .empty(let parked): state = .offered(berth, applied: parked)
            case .offered(let old, let parked):
                old.socket.shutDown()
                state = .offered(berth, applied: parked)
            // The thread sleeps over its broken connection: it will see.
            case .busy(let old):
                old.shutDown()
                state = .offered(berth, applied: 0)
            case .over: socket.shutDown()
            }
        }
    }

    /// Called by the lane's thread, whose connection (if it had one) is broken. Blocks for the next; nil: the flow is over.
    ///
    /// - Parameter applied: by a receiver: frames it has applied since the lane's first.
    func next(applied: UInt64 = 0) -> Berth? {
        state.update { state in
            switch state {
            case .busy, .empty: state = .empty(applied: applied)
            case .offered, .over: break
            }
        }
        return state.wait { state -> Berth?? in
            switch state {
            case .offered(let berth, _):
                state = .busy(berth.socket)
                return .some(berth)
            case .over: return .some(nil)
            case .empty, .busy: return nil
            }
        } ?? nil
    }

    var isOffered: Bool { state.read { if case .offered = $0 { true } else { false } } }

    /// Called by the lane's thread: its connection is somebody else's from here on.
    func leave() {
        state.update { if case .busy = $0 { $0 = .empty(applied: 0) } }
    }

    /// Breaks the connection in use, and drops one that was not taken.
    func clear() {
        state.update { state in
            switch state {
            case .offered(let berth, let applied):
                berth.socket.shutDown()
                state = .empty(applied: applied)
            case .busy(let socket): socket.shutDown()
            case .empty, .over: break
            }
        }
    }

    /// Blocks until the thread waits in ``next(applied:)``; what it said there, or nil: not in time.
    func waitUntilParked(ms: Double) -> UInt64? {
        state.wait(ms: ms) { if case .empty(let applied) = $0 { applied } else { nil } }
    }

    /// For ever: the thread ends.
    func end() {
        state.update { state in
            switch state {
            case .offered(let berth, _): berth.socket.shutDown()
            case .busy(let socket): socket.shutDown()
            case .empty, .over: break
            }
            state = .over
        }
    }
}

/// Which loss is news. All connections of a flow are lost together, so one report is enough; and a lane that slept over
/// a loss must not be taken for the next one.
final class LossReport: Sendable {
    private struct Content: Sendable {
        var attempt = 0
        var isKnown = false
    }
    private let content = Monitor(Content())

    /// Sets of connections made so far, less one.
    var attempt: Int { content.read { $0.attempt } }

    /// The loss of all that there is now is known.
    func know() { content.update { $0.isKnown = true } }

    /// A new set of connections.
    func begin() -> Int {
        content.update { content in
            content.attempt += 1
            content.isKnown = false
            return content.attempt
        }
    }

    /// True the first time for the present set.
    func isNews(_ attempt: Int) -> Bool {
        content.update { content in
            guard attempt == content.attempt, !content.isKnown else { return false }
            content.isKnown = true
            return true
        }
    }
}
