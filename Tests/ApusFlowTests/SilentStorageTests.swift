import ApusCodec
import ApusContent
import ApusFabric
import ApusFlow
import ApusLab
import ApusMemory
import ApusSystem
import ApusWire
import Foundation
import Testing

/// A destination whose storage hangs: it takes every frame, and never says what became of a reference.
@Suite(.serialized) struct SilentStorageTests {
    private static let pages = 1024

    private struct Seen: Sendable {
        var referred: Set<PageNumber> = []
        var missingAtFence: Int?
    }

    private struct Note: PageInstaller {
        var whole: Set<PageNumber> = []
        let patchable = PageRanges()

        mutating func installZero(first: PageNumber, count: Int) throws(PayloadError) { take(first, count) }
        mutating func install(first: PageNumber, _ bytes: RawSpan) throws(PayloadError) {
            take(first, bytes.byteCount / 4096)
        }
        mutating func patch(
            _ page: PageNumber, mask: UInt32, lineBytes: Int, _ bytes: RawSpan
        ) throws(PayloadError) {}
        private mutating func take(_ first: PageNumber, _ count: Int) {
            whole.formUnion(first..<first + PageNumber(count))
        }
    }

    private static func serve(_ connection: consuming Connection, _ layout: Layout, _ seen: Monitor<Seen>) throws {
        var connection = connection
        var decoder = BatchDecoder(layout: layout, LaneShare(lane: 0, lanes: 1))
        var replica = ReplicaMap(LaneShare(lane: 0, lanes: 1))
        var note = Note()
        var credit = PageBuffer(byteCount: 16)
        var (bytes, frames): (UInt64, UInt64) = (0, 0)
        while let frame = try connection.receiver.receive(), frame.kind != .end {
            bytes += UInt64(FrameHeader.byteCount + frame.length)
            switch frame.kind {
            case .batch:
                note.whole = []
                _ = try decoder.decode(connection.receiver.payload, &replica, into: &note)
                let whole = note.whole
                seen.update { $0.referred.subtract(whole) }
                frames += 1
            case .reference:
                let count = try ReferencePayload.head(connection.receiver.payload).count
                var pages: Set<PageNumber> = []
                for index in 0..<count {
                    let entry = ReferencePayload.entry(connection.receiver.payload, at: index)
                    pages.formUnion(entry.page..<entry.page + PageNumber(entry.pages))
                }
                seen.update { [pages] in $0.referred.formUnion(pages) }
                frames += 1
            case .fence: seen.update { $0.missingAtFence = $0.referred.count }
            default: break
            }
            credit.store(bytes, at: 0)
            credit.store(frames, at: 8)
            try connection.sender.send(.credit, credit.bytes)
        }
    }

    @Test func everythingTravelsBeforeTheFence() throws {
        let folder = NSTemporaryDirectory() + "silent-" + UUID().uuidString
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: folder) }
        func content(_ page: Int) -> [UInt8] {
            (0..<4096).map { UInt8(truncatingIfNeeded: page &* 31 &+ $0 / 8 &* page) }
        }
        let image = Data((0..<Self.pages).flatMap(content))
        try image.write(to: URL(fileURLWithPath: folder + "/disk"))
        let key = ContentKey(secret: [UInt8](repeating: 3, count: 32), domain: "")
        let order = IndexOrder(image: folder + "/disk", sidecar: folder + "/index", key: key)
        let index = try #require(try BlockIndex.open(order)?.index)

        let byteCount = UInt64(Self.pages * 4096)
        let layout = try Layout([("pc.ram", byteCount)])
        let guest = try GuestWindow(
            try Descriptor.memoryFile(byteCount: byteCount), fileOffset: 0, byteCount: byteCount)
        guest.install(Array(image).rawBytes, at: 0)
        let seen = Monitor(Seen())
        let reception = try Reception(
            .tcp(host: "127.0.0.1", port: 0), decide: { _ in nil },
            accepted: { connection in
                if connection.hello.role == .lane {
                    let box = OneShot(connection)
                    _ = try? WorkerThread("silent") {
                        if let connection = box.take() { try? Self.serve(connection, layout, seen) }
                    }
                } else {
                    _ = try? ControlLink(connection, received: { _, _ in }, closed: { _, _ in })
                }
            })
        defer { reception.shutDown() }
        let link = try ControlLink(
            try Connection.dial(reception.endpoint, Hello(role: .control)), received: { _, _ in }, closed: { _, _ in })
        defer { link.cut() }
        let lanes = LaneConnections().adding(
            try Connection.dial(reception.endpoint, Hello(role: .lane, lane: 0, lanes: 1)))
        var options = FlowOptions()
        options.lineBytes = nil
        options.references = SourceReferences(key: key, images: [index], indexKey: key)
        let (qemu, near) = try Socket.pair()
        let source = try SourceFlow(
            .stream(near), control: link, lanes: lanes, options: options, memory: { _ in .mapped(guest) },
            report: { _ in })
        defer { source.stop() }
        var script = try StreamScript(layout)
        script.beginEnd()
        for page in 0..<Self.pages { script.page(0, page, content(page)) }
        script.endSection()
        script.finish()
        try qemu.write(script.buffer.bytes)
        #expect(seen.wait(ms: 20_000) { $0.missingAtFence } == 0)
        let sample = source.sample()
        #expect(sample.unansweredPages > 500)
        #expect(sample.diskPages == 0 && sample.waitingPages == 0)
    }
}
