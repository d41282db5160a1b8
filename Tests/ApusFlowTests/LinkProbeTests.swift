import ApusFabric
import ApusSystem
import ApusWire
import Testing

/// Real TCP on loopback.
@Suite(.serialized) struct LinkProbeTests {
    private func listen(_ desk: ProbeDesk) throws -> Reception {
        try Reception(
            .tcp(host: "127.0.0.1", port: 0), decide: { $0.role == .probe ? desk.refusal() : nil },
            accepted: { desk.answer($0) })
    }

    @Test func itMeasures() throws {
        let reception = try listen(ProbeDesk())
        defer { reception.shutDown() }
        let link = try LinkProbe.measure(reception.endpoint, ms: 100)
        #expect(link.bytesPerS > 10e6 && link.bytesPerS.isFinite)
        #expect(link.roundTripMs > 0 && link.roundTripMs < 1000)
    }

    @Test func onlySoManyAtOnce() throws {
        let reception = try listen(ProbeDesk())
        defer { reception.shutDown() }
        var held: [Socket] = []
        for _ in 0..<LinkProbe.atOnceMax {
            let connection = try Connection.dial(reception.endpoint, Hello(role: .probe))
            held.append(connection.socket)
        }
        // The last one's place is taken a moment after it was welcomed.
        pause(ms: 100)
        var refused: FabricError?
        do throws(FabricError) { _ = try LinkProbe.measure(reception.endpoint, ms: 10) } catch { refused = error }
        guard case .refused(let refusal)? = refused else {
            Issue.record("not refused: \(String(describing: refused))")
            return
        }
        #expect(refusal.code == .busy)
        for socket in held { socket.shutDown() }
        pause(ms: 200)
        #expect(try LinkProbe.measure(reception.endpoint, ms: 10).bytesPerS > 0)
    }

    /// As long as a frame may be, both ways.
    @Test(arguments: [1, 5000, 300_000, 1 << 20]) func questionsAreAnswered(length: Int) throws {
        let reception = try listen(ProbeDesk { $0.reversed() })
        defer { reception.shutDown() }
        let question = (0..<length).map { UInt8(truncatingIfNeeded: $0 &* 31) }
        #expect(try LinkProbe.ask(reception.endpoint, question) == question.reversed())
    }

    /// Whoever sends anything else, or without end, is cut.
    @Test(arguments: [FrameKind.batch, .control, .layout]) func otherFramesAreNotTaken(kind: FrameKind) throws {
        let reception = try listen(ProbeDesk())
        defer { reception.shutDown() }
        var connection = try Connection.dial(reception.endpoint, Hello(role: .probe))
        try connection.socket.setTimeout(receiveMs: 3000, sendMs: 3000)
        try connection.sender.send(kind, [UInt8](repeating: 0, count: 64).rawBytes)
        var closed: FabricError?
        do throws(FabricError) {
            if try connection.receiver.receive() == nil { closed = .closed }
        } catch { closed = error }
        #expect(closed == .closed)
    }
}
