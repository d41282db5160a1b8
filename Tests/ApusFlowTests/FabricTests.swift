import ApusFabric
import ApusSystem
import ApusWire
import Testing

/// Real TCP on loopback against peers that misbehave.
@Suite(.serialized) struct FabricTests {
    private func listen(_ accepted: @escaping @Sendable (consuming Connection) -> Void = { _ in }) throws -> Reception {
        try Reception(
            .tcp(host: "127.0.0.1", port: 0),
            decide: { $0.lane == 9 ? Refusal(.badLane, "Lane 9 is not expected.") : nil }, accepted: accepted)
    }

    private func dialError(_ reception: Reception, _ hello: Hello) -> FabricError? {
        do throws(FabricError) {
            _ = try Connection.dial(reception.endpoint, hello, timeoutMs: 2000)
            return nil
        } catch { return error }
    }

    @Test func aPeerOfAnotherVersionIsToldSo() throws {
        let reception = try listen()
        defer { reception.shutDown() }
        guard case .refused(let refusal)? = dialError(reception, Hello(role: .control, versions: 7...8)) else {
            Issue.record("not refused")
            return
        }
        #expect(refusal.code == .version)
        #expect(refusal.text.contains("7...8"))
    }

    @Test func anUnwelcomeLaneIsToldSo() throws {
        let reception = try listen()
        defer { reception.shutDown() }
        #expect(
            dialError(reception, Hello(role: .lane, lane: 9, lanes: 10))
                == .refused(Refusal(.badLane, "Lane 9 is not expected.")))
    }

    @Test func garbageIsCutOff() throws {
        let reception = try listen()
        defer { reception.shutDown() }
        let socket = try Socket.connect(to: reception.endpoint, timeoutMs: 1000)
        try socket.setTimeout(receiveMs: 3000, sendMs: 1000)
        try socket.write([UInt8](repeating: 0x47, count: 100).rawBytes)
        var buffer = PageBuffer(byteCount: 64)
        // Closed, with or without a reset: nothing is ever answered.
        let answer = (try? socket.read(into: &buffer, 0..<64)) ?? 0
        #expect(answer == 0)
        #expect(dialError(reception, Hello(role: .control)) == nil)
    }

    @Test func framesCutShortAndOutOfSequenceAreErrors() throws {
        let (near, far) = try Socket.pair()
        var sender = try FrameSender(near)
        try sender.send(.credit, [UInt8](repeating: 1, count: 16).rawBytes)
        var receiver = FrameReceiver(far, longest: .credit)
        let frame = try receiver.receive()
        #expect(frame?.kind == .credit)
        // A second sender begins at 1 again.
        var other = try FrameSender(near)
        try other.send(.credit, [UInt8](repeating: 1, count: 16).rawBytes)
        var sequenceError: FabricError?
        do throws(FabricError) { _ = try receiver.receive() } catch { sequenceError = error }
        #expect(sequenceError == .frame(.outOfSequence(want: 2, got: 1)))
        #expect(throws: FabricError.self) {
            var late = FrameReceiver(far, longest: .credit)
            try near.write([0x41, 0x50, 0x55].rawBytes)
            near.shutDown()
            _ = try late.receive()
        }
    }

    @Test func aPeerThatStopsReadingIsCut() throws {
        let held = Monitor<[OneShot<Connection>]>([])
        let reception = try listen { connection in
            let box = OneShot(connection)
            held.update { $0.append(box) }
        }
        defer { reception.shutDown() }
        let over = Latch()
        let link = try ControlLink(
            try Connection.dial(reception.endpoint, Hello(role: .control)), received: { _, _ in },
            closed: { _, _ in over.open() })
        // Nobody reads: the socket fills, then the queue, then the link gives up instead of growing.
        var posted = 0
        while posted < 200_000, link.post(.init(.control, [UInt8](repeating: 7, count: 64 << 10))) { posted += 1 }
        #expect(posted < 200_000)
        #expect(link.isClosed)
        #expect(over.wait(ms: 5000))
    }
}
