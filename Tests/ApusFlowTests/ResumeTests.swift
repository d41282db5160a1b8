import ApusFabric
import ApusFlow
import ApusLab
import ApusMemory
import ApusSystem
import ApusWire
import Testing

/// A flow whose connections break, over real TCP. Guest RAM at the source is a file that always holds the newest content.
@Suite(.serialized) struct ResumeTests {
    private static let pages = 4096
    private static let blocks: [(name: String, byteCount: UInt64)] = [
        ("pc.ram", UInt64(pages * 4096)), ("pc.bios", 256 << 10),
    ]

    /// Every eighth page is zero; no other compresses.
    private static func content(_ page: Int, _ version: Int) -> [UInt8] {
        if page % 8 == 7 { return [UInt8](repeating: 0, count: 4096) }
        var state = UInt64(page) << 32 | UInt64(version) << 1 | 1
        return (0..<4096).map { _ in
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return UInt8(truncatingIfNeeded: state >> 33)
        }
    }

    private static func guest() throws -> GuestWindow {
        try GuestWindow(
            try Descriptor.memoryFile(byteCount: blocks[0].byteCount), fileOffset: 0, byteCount: blocks[0].byteCount)
    }

    private static func wrong(_ loop: Loopback, _ guest: GuestWindow) -> Int {
        var here = PageBuffer(byteCount: 4096)
        var there = PageBuffer(byteCount: 4096)
        var count = 0
        for page in 0..<pages {
            guest.copyOut(at: UInt64(page * 4096), byteCount: 4096, to: &here, bufferOffset: 0)
            loop.window.copyOut(at: UInt64(page * 4096), byteCount: 4096, to: &there, bufferOffset: 0)
            if here.bytes.bytesCopied != there.bytes.bytesCopied { count += 1 }
        }
        return count
    }

    /// Four rounds in which some pages change, and a connection that breaks again and again in all but the last, as the
    /// guest is stopped then: what arrives is right, and what was confirmed did not travel twice.
    @Test(arguments: [1, 3], [128, nil] as [Int?]) func everythingArrives(lanes: Int, lineBytes: Int?) throws {
        let guest = try Self.guest()
        var options = FlowOptions(bytesPerS: 40_000_000)
        options.lineBytes = lineBytes
        let loop = try Loopback(lanes: lanes, blocks: Self.blocks, options: options, guest: guest)
        defer { loop.stop() }
        var parts: [[UInt8]] = []
        for version in 0..<4 {
            var script = version == 0 ? try StreamScript(loop.layout) : try StreamScript(continuing: loop.layout)
            if version < 3 { script.beginPart() } else { script.beginEnd() }
            for page in stride(from: 0, to: Self.pages, by: version * 2 + 1) {
                let bytes = Self.content(page, version)
                script.page(0, page, bytes.allSatisfy { $0 == 0 } ? nil : bytes)
            }
            script.endSection()
            if version == 3 { script.finish() }
            parts.append(script.buffer.bytes.bytesCopied)
        }
        let (qemu, written, mayEnd) = (loop.sourceQemu, Latch(), Latch())
        try qemu.setTimeout(receiveMs: 0, sendMs: 30_000)
        let writing = try WorkerThread("fake-qemu") { [parts] in
            for (version, bytes) in parts.enumerated() {
                if version == 3 {
                    written.open()
                    mayEnd.wait()
                }
                // The guest writes a page before its QEMU sends it.
                for page in stride(from: 0, to: Self.pages, by: version * 2 + 1) {
                    guest.install(Self.content(page, version).rawBytes, at: UInt64(page * 4096))
                }
                try? qemu.write(bytes.rawBytes)
            }
        }
        // QEMU's own bytes at the beginning cannot be sent again.
        for _ in 0..<2000 where loop.destination.sample().dataPages == 0 { pause(ms: 5) }
        var breaks = 0
        while !written.wait(ms: 60) {
            try loop.reconnect()
            breaks += 1
        }
        mayEnd.open()
        let received = try loop.receive(until: StreamScript.tail)
        #expect(Array(received.suffix(StreamScript.tail.count)) == StreamScript.tail)
        #expect(writing.join(ms: 10_000))
        #expect(breaks > 3, "only \(breaks) breaks")
        #expect(Self.wrong(loop, guest) == 0)
        let failures = loop.sourceEvents.read { events in
            events.filter { if case .failed = $0 { true } else { false } }
        }
        #expect(failures == [])
        let sample = loop.source.sample()
        let once = UInt64(parts.reduce(0) { $0 + $1.count })
        let inFlight = UInt64(breaks * lanes * Limits.windowBytesMin * 2)
        #expect(sample.wireBytes < once + inFlight, "\(sample.wireBytes) for \(once), \(breaks) breaks")
    }

    /// What QEMU sends beside pages arrives once and in order, however often its lane breaks.
    @Test func deviceStateArrivesOnce() throws {
        let loop = try Loopback(
            lanes: 2, blocks: Self.blocks, options: FlowOptions(bytesPerS: 4_000_000), guest: try Self.guest())
        defer { loop.stop() }
        let state = (0..<256).flatMap { Self.content($0, 1) }.map { max($0, 1) }
        var script = try StreamScript(loop.layout)
        script.beginEnd()
        script.endSection()
        script.finish(state)
        let received = Monitor<[UInt8]>([])
        let reading = try WorkerThread("fake-qemu") {
            let bytes = (try? loop.receive(until: StreamScript.tail)) ?? []
            received.update { $0 = bytes }
        }
        let bytes = script.buffer.bytes.bytesCopied
        let writing = try WorkerThread("fake-source") { try? loop.sourceQemu.write(bytes.rawBytes) }
        for _ in 0..<1000 where loop.destination.fenceMs == nil { pause(ms: 1) }
        for _ in 0..<4 {
            pause(ms: 40)
            try loop.reconnect()
        }
        #expect(writing.join(ms: 10_000))
        #expect(reading.join(ms: 20_000))
        #expect(received.read { $0.suffix(state.count + StreamScript.tail.count) == state + StreamScript.tail })
    }

    /// On two of them the pieces of a stream would not be in order.
    @Test(arguments: [FrameKind.stream, .residence]) func otherLanesCarryPagesOnly(_ kind: FrameKind) throws {
        let layout = try Layout(Self.blocks)
        let (far, near) = try Socket.pair()
        let failure = Monitor<FlowFailure?>(nil)
        let flow = try DestinationFlow(
            qemu: near, lanes: 2, references: nil, ports: { _ in .stream }, send: { _ in },
            report: { event in if case .failed(let error) = event { failure.update { $0 = $0 ?? error } } })
        let reception = try Reception(
            .tcp(host: "127.0.0.1", port: 0), decide: { _ in nil }, accepted: { flow.attach($0) })
        defer {
            flow.stop()
            reception.shutDown()
            far.shutDown()
        }
        flow.receive(.init(.layout, LayoutPayload.bytes(layout)))
        let first = try Connection.dial(reception.endpoint, Hello(role: .lane, lane: 0, lanes: 2))
        var second = try Connection.dial(reception.endpoint, Hello(role: .lane, lane: 1, lanes: 2))
        try second.sender.send(kind, lane: 1, [1, 2, 3, 4, 5, 6, 7, 8].rawBytes)
        let seen = failure.wait(ms: 5_000) { $0 }
        #expect(seen?.code == "peer", "\(String(describing: seen))")
        _ = consume first
    }

    /// A flow that has sent some pages, and what its source says to a destination that lies, or to a loss it cannot mend.
    private func failure(
        block: Int = 0, guest: GuestWindow?, lie: @escaping (inout ResumePoint) -> Void
    ) throws -> FlowFailure? {
        let loop = try Loopback(lanes: 2, blocks: Self.blocks, guest: guest)
        defer { loop.stop() }
        var script = try StreamScript(loop.layout)
        script.beginPart()
        for page in 0..<8 { script.page(block, page, Self.content(page, 0)) }
        script.endSection()
        try loop.sourceQemu.write(script.buffer.bytes)
        for _ in 0..<1000 where loop.destination.sample().dataPages == 0 { pause(ms: 5) }
        do {
            try loop.reconnect { point in
                var point = point
                lie(&point)
                return point
            }
        } catch let failure as FlowFailure { return failure }
        return loop.sourceEvents.wait(ms: 3000) { events in
            for case .failed(let failure) in events { return failure }
            return nil
        }
    }

    /// What a destination says is held against what was sent.
    @Test func liesAreRefused() throws {
        let guest = try Self.guest()
        #expect(try failure(guest: guest) { $0.framesApplied.removeLast() }?.code == "peer")
        #expect(try failure(guest: guest) { $0.framesApplied[1] += 1000 }?.code == "link")
        #expect(try failure(guest: guest) { $0.streamBytes += 1 }?.code == "peer")
        #expect(try failure(guest: guest) { $0.streamBytes -= 1 }?.code == "resume")
        #expect(try failure(guest: guest) { _ in } == nil)
        // No lie: the layout was lost, and is said again.
        #expect(try failure(guest: guest) { $0.layoutKnown = false } == nil)
    }

    /// Pages that only QEMU can read cannot be sent again.
    @Test func whatCannotBeReadEndsTheJob() throws {
        #expect(try failure(block: 1, guest: nil) { $0.framesApplied = [0, 0] }?.code == "resume")
    }
}
