import ApusFabric
import ApusSystem
import ApusWire
import Testing

@testable import ApusControl

/// Where frames go that are no control messages.
@Suite(.serialized) struct LinkRouterTests {
    private typealias Router = LinkRouter<Int>

    private func with(_ body: (Router, ControlLink) throws -> Void) throws {
        let kept = Monitor<[OneShot<Connection>]>([])
        let reception = try Reception(
            .tcp(host: "127.0.0.1", port: 0), decide: { _ in nil },
            accepted: { connection in
                let box = OneShot(connection)
                kept.update { $0.append(box) }
            })
        defer { reception.shutDown() }
        let router = Router(job: "m-1", inbox: AsyncStream<SessionInput<Int>>.makeStream().continuation)
        let link = try ControlLink(
            try Connection.dial(reception.endpoint, Hello(role: .control)), received: { _, _ in }, closed: { _, _ in })
        defer { link.cut() }
        try body(router, link)
    }

    @Test func nobodyHasAskedForIt() throws {
        try with { router, link in
            router.receive(link, .init(.returnPath, [1]))
            #expect(link.isClosed)
        }
    }

    /// The destination's QEMU answers within a round trip.
    @Test(.timeLimit(.minutes(1))) func whatComesTooSoonWaits() throws {
        try with { router, link in
            let taken = Monitor<[[UInt8]]>([])
            router.expectFlow()
            let reader = try WorkerThread("test-reader") {
                for byte in UInt8(1)...2 { router.receive(link, .init(.returnPath, [byte])) }
            }
            #expect(!reader.join(ms: 100))
            router.setFlow { message in taken.update { $0.append(message.bytes) } }
            reader.join()
            #expect(taken.read { $0 } == [[1], [2]] && !link.isClosed)
        }
    }

    /// The job has ended instead.
    @Test(.timeLimit(.minutes(1))) func whatWaitsInVainIsLetGo() throws {
        try with { router, link in
            router.expectFlow()
            let reader = try WorkerThread("test-reader") { router.receive(link, .init(.returnPath, [1])) }
            router.setFlow(nil)
            reader.join()
            #expect(link.isClosed)
        }
    }
}
