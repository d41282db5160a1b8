import ApusContent
import ApusLab
import ApusMemory
import ApusSystem
import ApusWire
import Foundation
import Testing

@testable import ApusFlow

/// A flow whose source refers to a disk image that both sides read, over real TCP.
@Suite(.serialized) struct ReferenceFlowTests {
    private static let pages = 4096
    private static let blocks: [(name: String, byteCount: UInt64)] = [
        ("pc.ram", UInt64(pages * 4096)), ("pc.bios", 256 << 10),
    ]
    private static let key = ContentKey(secret: [UInt8](repeating: 7, count: 32), domain: "flow")

    /// The destination's image.
    enum There: CaseIterable { case same, other, cut, missing, written }

    /// Never twice the same.
    private static func noise(_ number: Int) -> [UInt8] {
        var state = UInt64(number) << 1 | 1
        return (0..<4096).map { _ in
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return UInt8(truncatingIfNeeded: state >> 33)
        }
    }

    /// Three of four pages are somewhere on the disk, most of them in order.
    private static func content(_ page: Int, _ version: Int) -> [UInt8] {
        if page % 4 == 3 { return noise(1_000_000 * (version + 1) + page) }
        return noise((page + version * 640) % pages)
    }

    private static func image(_ path: String, _ block: (Int) -> [UInt8]) throws {
        var data = Data()
        for number in 0..<pages { data.append(contentsOf: block(number)) }
        try data.write(to: URL(fileURLWithPath: path))
    }

    private struct World {
        let folder: String
        let guest: GuestWindow
        let source: SourceReferences
        let destination: DestinationReferences

        init(_ there: There) throws {
            folder = NSTemporaryDirectory() + "references-" + UUID().uuidString
            try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
            let (here, other) = (folder + "/here", folder + "/there")
            try ReferenceFlowTests.image(here, ReferenceFlowTests.noise)
            switch there {
            case .same, .missing: break
            case .other: try ReferenceFlowTests.image(other) { ReferenceFlowTests.noise($0 + 5_000_000) }
            case .cut, .written: try FileManager.default.copyItem(atPath: here, toPath: other)
            }
            let order = IndexOrder(image: here, sidecar: folder + "/index", key: ReferenceFlowTests.key)
            guard let index = try BlockIndex.open(order)?.index else { throw SystemError.connectionReset }
            if there == .cut { _ = unsafe truncate(other, off_t(ReferenceFlowTests.pages / 2 * 4096 + 100)) }
            source = SourceReferences(key: ReferenceFlowTests.key, images: [index], indexKey: ReferenceFlowTests.key)
            let file: Descriptor? =
                there == .missing ? nil : try ImageReader.openImage(there == .same ? here : other)
            destination = DestinationReferences(key: ReferenceFlowTests.key, images: [file], snapshot: nil)
            let byteCount = ReferenceFlowTests.blocks[0].byteCount
            guest = try GuestWindow(
                try Descriptor.memoryFile(byteCount: byteCount), fileOffset: 0, byteCount: byteCount)
        }
    }

    private static func wrong(_ loop: Loopback, _ guest: GuestWindow) -> Int {
        var here = PageBuffer(byteCount: 4096)
        var there = PageBuffer(byteCount: 4096)
        return (0..<pages).count { page in
            guest.copyOut(at: UInt64(page * 4096), byteCount: 4096, to: &here, bufferOffset: 0)
            loop.window.copyOut(at: UInt64(page * 4096), byteCount: 4096, to: &there, bufferOffset: 0)
            return !here.bytes.equals(there.bytes)
        }
    }

    /// Four rounds in which pages change, and, if wished, connections that break.
    private func move(_ there: There, lanes: Int, breaking: Bool = false) throws -> FlowSample {
        let world = try World(there)
        defer { try? FileManager.default.removeItem(atPath: world.folder) }
        let guest = world.guest
        var options = FlowOptions(bytesPerS: breaking ? 20_000_000 : nil)
        options.references = world.source
        let loop = try Loopback(
            lanes: lanes, blocks: Self.blocks, options: options, guest: guest, references: world.destination)
        defer { loop.stop() }
        let (qemu, written, mayEnd, layout) = (loop.sourceQemu, Latch(), Latch(), loop.layout)
        let parts = try (0..<4).map { version in
            var script = version == 0 ? try StreamScript(layout) : try StreamScript(continuing: layout)
            if version < 3 { script.beginPart() } else { script.beginEnd() }
            for page in stride(from: 0, to: Self.pages, by: version * 2 + 1) {
                script.page(0, page, Self.content(page, version))
            }
            script.endSection()
            if version == 3 { script.finish() }
            return script.buffer.bytes.bytesCopied
        }
        try qemu.setTimeout(receiveMs: 0, sendMs: 30_000)
        let writing = try WorkerThread("fake-qemu") {
            for (version, bytes) in parts.enumerated() {
                if version == 3 {
                    written.open()
                    mayEnd.wait()
                }
                for page in stride(from: 0, to: Self.pages, by: version * 2 + 1) {
                    guest.install(Self.content(page, version).rawBytes, at: UInt64(page * 4096))
                }
                try? qemu.write(bytes.rawBytes)
            }
        }
        let ends = Latch()
        if there == .written {
            // A guest's own disk, written all the while.
            let path = world.folder + "/there"
            _ = try WorkerThread("fake-disk") {
                guard let file = FileHandle(forUpdatingAtPath: path) else { return }
                var number = 0
                while !ends.wait(ms: 0.2) {
                    number = (number + 1009) % Self.pages
                    try? file.seek(toOffset: UInt64(number * 4096 + 512))
                    try? file.write(contentsOf: Data(repeating: UInt8(truncatingIfNeeded: number), count: 3000))
                }
            }
        }
        defer { ends.open() }
        for _ in 0..<2000 where loop.destination.sample().dataPages == 0 { pause(ms: 5) }
        var breaks = 0
        while !written.wait(ms: breaking ? 60 : 20_000) {
            try loop.reconnect()
            breaks += 1
        }
        mayEnd.open()
        let received = try loop.receive(until: StreamScript.tail)
        #expect(Array(received.suffix(StreamScript.tail.count)) == StreamScript.tail)
        #expect(writing.join(ms: 10_000))
        #expect(Self.wrong(loop, guest) == 0)
        #expect(!breaking || breaks > 2, "only \(breaks) breaks")
        let failures = loop.sourceEvents.read { events in events.filter { if case .failed = $0 { true } else { false } }
        }
        #expect(failures == [])
        #expect(loop.destinationEvents.read { $0 }.filter { $0 != .linkLost } == [])
        return loop.source.sample()
    }

    @Test(arguments: [1, 3]) func whatIsOnTheDiskDoesNotTravel(lanes: Int) throws {
        let sample = try move(.same, lanes: lanes)
        #expect(sample.diskPages > 3000)
        #expect(sample.refusedPages == 0)
        #expect(sample.waitingPages == 0)
        // A reference takes 1 % of its page.
        #expect(sample.referenceBytes < sample.diskPages * 60)
        #expect(sample.wireBytes < sample.plainBytes / 2)
    }

    @Test(arguments: There.allCases.filter { $0 != .same }) func whatIsNotThereTravels(there: There) throws {
        let sample = try move(there, lanes: 2)
        #expect(sample.refusedPages > 100)
        switch there {
        case .other, .missing:
            #expect(sample.diskPages == 0)
            // A storm ends soon.
            #expect(sample.referenceClosures > 0)
            #expect(sample.refusedPages < 4000)
        case .cut, .written: #expect(sample.diskPages > 100)
        case .same: break
        }
    }

    @Test(arguments: [1, 3]) func brokenConnectionsLoseNothing(lanes: Int) throws {
        let sample = try move(.same, lanes: lanes, breaking: true)
        #expect(sample.diskPages > 1000)
    }

    @Test func itIsLookedSeldomWhereNothingIsFound() {
        var pace = LookupPace()
        var looked = 0
        for _ in 0..<1000 {
            looked += 64 / pace.step
            pace.looked(pages: 64, found: 0)
        }
        #expect((8000...9600).contains(looked))
        // One hit, and all is looked for again.
        pace.looked(pages: 64, found: 1)
        #expect(pace.step == 1)
        for _ in 0..<3 { pace.looked(pages: 64, found: 0) }
        #expect(pace.step == 1)
    }
}
