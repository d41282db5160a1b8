import ApusFlow
import ApusLab
import ApusMemory
import ApusSystem
import ApusWire
import Testing

@Suite(.serialized) struct FlowTests {
    private static let blocks: [(name: String, byteCount: UInt64)] = [("pc.ram", 16 << 20), ("pc.bios", 256 << 10)]

    /// Versions of a page, told apart by their bytes; some compress, some do not.
    private static func content(_ page: Int, _ version: Int) -> [UInt8] {
        var state = UInt64(page) << 32 | UInt64(version) | 1
        let compressible = page % 3 != 0
        return (0..<4096).map { index in
            if compressible { return UInt8(truncatingIfNeeded: page &+ version &+ index / 256) }
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return UInt8(truncatingIfNeeded: state >> 33)
        }
    }

    /// Writes the whole script as QEMU would, and reads at the other end until it has all arrived.
    private func play(_ script: StreamScript, on loop: Loopback) throws {
        try loop.sourceQemu.setTimeout(receiveMs: 0, sendMs: 20_000)
        let (sourceQemu, bytes) = (loop.sourceQemu, script.buffer.bytes.bytesCopied)
        let writing = try WorkerThread("fake-qemu") { try? sourceQemu.write(bytes.rawBytes) }
        let received = try loop.receive(until: StreamScript.tail)
        #expect(Array(received.suffix(StreamScript.tail.count)) == StreamScript.tail)
        #expect(writing.join(ms: 10_000))
        #expect(loop.destinationEvents.read { $0 } == [])
    }

    private static func page(_ number: Int, of loop: Loopback) -> [UInt8] {
        var page = PageBuffer(byteCount: 4096)
        loop.window.copyOut(at: UInt64(number * 4096), byteCount: 4096, to: &page, bufferOffset: 0)
        return page.bytes.bytesCopied
    }

    /// Three versions of many pages, zero pages in between, over 1, 2 and 4 lanes: the last version of each arrives, and
    /// the device state reaches QEMU only after all pages.
    @Test(arguments: [1, 2, 4]) func theLastVersionArrives(lanes: Int) throws {
        let loop = try Loopback(lanes: lanes, blocks: Self.blocks)
        defer { loop.stop() }
        var script = try StreamScript(loop.layout)
        var expected: [Int: [UInt8]?] = [:]
        for version in 0..<3 {
            if version < 2 { script.beginPart() } else { script.beginEnd() }
            for page in stride(from: version, to: 4096, by: version + 1) {
                let bytes = (page + version) % 5 == 0 ? nil : Self.content(page, version)
                script.page(0, page, bytes)
                expected[page] = .some(bytes)
            }
            script.endSection()
        }
        script.finish()
        try play(script, on: loop)
        let arrived = (0..<4096).count { page in
            Self.page(page, of: loop) == (expected[page] ?? nil) ?? [UInt8](repeating: 0, count: 4096)
        }
        #expect(arrived == 4096)
        let sample = loop.source.sample()
        let replaced = sample.hold?.absorbedPages ?? 0
        #expect(sample.dataPages + sample.zeroPages + replaced == UInt64(4096 + 2048 + 1365))
        #expect(loop.destination.installed == ["pc.ram": "mapped", "pc.bios": "stream"])
    }

    /// Rounds in which a few bytes of many pages change: what arrives is the last version, and little of it travelled.
    @Test(arguments: [1, 2, 4]) func changedLinesArrive(lanes: Int) throws {
        var options = FlowOptions()
        options.holdsHotPages = false
        let loop = try Loopback(lanes: lanes, blocks: Self.blocks, options: options)
        defer { loop.stop() }
        var script = try StreamScript(loop.layout)
        // Only every third kind of content, the one that does not compress: what is saved is saved by lines.
        var pages = (0..<1024).map { Self.content($0 * 3, 1) }
        for round in 0..<6 {
            if round < 5 { script.beginPart() } else { script.beginEnd() }
            for page in pages.indices {
                if round > 0 { pages[page][(page * 7 + round * 611) % 4096] ^= 0x55 }
                script.page(0, page, pages[page])
            }
            script.endSection()
        }
        script.finish()
        try play(script, on: loop)
        #expect(pages.indices.count { Self.page($0, of: loop) == pages[$0] } == 1024)
        let sample = loop.source.sample()
        #expect(sample.dataPages == 6 * 1024)
        // The first round, and perhaps a second until the receiver's word on what it can patch has come.
        #expect(sample.linePages >= 4 * 1024)
        #expect(sample.changedLines == sample.linePages)
        #expect(sample.lineTableBytes == 1024 * 256)
        #expect(loop.destination.sample().linePages == sample.linePages)
    }

    /// Pages that come in every round are kept back until the guest is stopped: fewer travel, and the last version arrives.
    @Test(arguments: [true, false]) func hotPagesWait(holds: Bool) throws {
        var options = FlowOptions()
        options.lineBytes = nil
        options.holdsHotPages = holds
        let loop = try Loopback(lanes: 2, blocks: Self.blocks, options: options)
        defer { loop.stop() }
        var script = try StreamScript(loop.layout)
        let rounds = 12
        for round in 0..<rounds {
            if round < rounds - 1 { script.beginPart() } else { script.beginEnd() }
            // The last round brings every other page only: the rest has to leave by itself.
            for page in stride(from: 0, to: 100, by: round < rounds - 1 ? 1 : 2) {
                script.page(0, page, Self.content(page * 3, round))
            }
            script.page(1, 0, Self.content(7, round))
            script.endSection()
        }
        script.finish()
        try play(script, on: loop)
        let arrived = (0..<100).count { page in
            Self.page(page, of: loop) == Self.content(page * 3, page % 2 == 0 ? rounds - 1 : rounds - 2)
        }
        #expect(arrived == 100)
        let sample = loop.source.sample()
        let sent = UInt64((rounds - 1) * 100 + 50 + rounds)
        #expect(sample.dataPages + (sample.hold?.absorbedPages ?? 0) == sent)
        #expect((sample.hold != nil) == holds)
        // From round 4 on at least the few that are always held; those that are held are replaced from round 5 on, before the last.
        if holds { #expect(sample.dataPages <= sent - UInt64(7 * HoldRoom.probePages)) }
        #expect((sample.hold?.heldPages ?? 0 > 0) == holds)
    }

    /// Blocks that only QEMU can reach arrive as records of a valid stream.
    @Test func pagesGoThroughTheStreamWhereRAMCannotBeReached() throws {
        let loop = try Loopback(lanes: 2, blocks: Self.blocks, mapped: false)
        defer { loop.stop() }
        var script = try StreamScript(loop.layout)
        var expected: [PageNumber: [UInt8]] = [:]
        script.beginPart()
        for page in 0..<300 {
            let bytes = page % 7 == 0 ? nil : Self.content(page, 1)
            script.page(0, page, bytes)
            expected[PageNumber(page)] = bytes ?? [UInt8](repeating: 0, count: 4096)
        }
        for page in 0..<8 {
            script.page(1, page, Self.content(page, 5))
            expected[loop.layout.blocks[1].firstPage + PageNumber(page)] = Self.content(page, 5)
        }
        script.endSection()
        script.beginEnd()
        script.page(0, 3, Self.content(3, 9))
        expected[3] = Self.content(3, 9)
        script.endSection()
        script.finish()
        try loop.sourceQemu.write(script.buffer.bytes)
        let received = try loop.receive(until: StreamScript.tail)

        var reader = QemuStreamReader()
        var pages: [PageNumber: [UInt8]] = [:]
        var at = 0
        while at < received.count {
            guard case .element(let element, let length) = try reader.next(received.rawBytes.extracting(at...)) else {
                break
            }
            switch element {
            case .page(let block, let offset):
                let number = loop.layout.blocks[block].firstPage + PageNumber(offset / 4096)
                pages[number] = Array(received[at + length - 4096..<at + length])
            case .zero(let block, let offset):
                let number = loop.layout.blocks[block].firstPage + PageNumber(offset / 4096)
                pages[number] = [UInt8](repeating: 0, count: 4096)
            default: break
            }
            at += length
        }
        #expect(pages == expected)
        #expect(reader.isOpaque)
    }

    @Test func shutOfTheDestinationIsReportedAndHeldBack() throws {
        let loop = try Loopback(lanes: 1, blocks: Self.blocks)
        defer { loop.stop() }
        try loop.destinationQemu.write(([0, 2, 0, 4, 0, 0, 0, 7] + [0, 1, 0, 4, 0, 0, 0, 0] as [UInt8]).rawBytes)
        let loaded = loop.destinationEvents.wait(ms: 5_000) { $0.first }
        #expect(loaded == .loaded)
    }

    @Test func aFailedLoadIsReported() throws {
        let loop = try Loopback(lanes: 1, blocks: Self.blocks)
        defer { loop.stop() }
        try loop.destinationQemu.write(([0, 1, 0, 4, 0, 0, 0, 1] as [UInt8]).rawBytes)
        guard case .failed(let failure)? = loop.destinationEvents.wait(ms: 5_000, { $0.first }) else {
            Issue.record("no failure reported")
            return
        }
        #expect(failure.code == "qemu-load")
    }

    @Test func garbageFromQemuFailsTheFlow() throws {
        let loop = try Loopback(lanes: 1, blocks: Self.blocks)
        defer { loop.stop() }
        try loop.sourceQemu.write([UInt8](repeating: 0x41, count: 64).rawBytes)
        guard case .failed(let failure)? = loop.sourceEvents.wait(ms: 5_000, { $0.first }) else {
            Issue.record("no failure reported")
            return
        }
        #expect(failure.code == "qemu-stream")
    }
}
