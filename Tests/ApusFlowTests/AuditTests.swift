import ApusFlow
import ApusLab
import ApusMemory
import ApusSystem
import ApusWire
import Testing

@Suite(.serialized) struct AuditTests {
    private static let blocks: [(name: String, byteCount: UInt64)] = [("pc.ram", 4 << 20), ("pc.bios", 64 << 10)]
    private static let pages = 1024

    private static func content(_ page: Int) -> [UInt8] {
        (0..<4096).map { UInt8(truncatingIfNeeded: page &* 31 &+ $0 / 16 &+ 1) }
    }

    /// Sends all pages but those of `lost`, which the destination therefore holds wrong, and ends the stream.
    private func move(lost: Set<Int>, lanes: Int, verifies: Bool) throws -> (wrong: Int, sample: FlowSample) {
        let file = try Descriptor.memoryFile(byteCount: Self.blocks[0].byteCount)
        let guest = try GuestWindow(file, fileOffset: 0, byteCount: Self.blocks[0].byteCount)
        var options = FlowOptions()
        options.verifies = verifies
        let loop = try Loopback(lanes: lanes, blocks: Self.blocks, options: options, guest: guest)
        defer { loop.stop() }
        var script = try StreamScript(loop.layout)
        script.beginPart()
        // Every tenth stripe of the guest was never used.
        for page in 0..<Self.pages where page / 64 % 10 != 9 {
            guest.install(Self.content(page).rawBytes, at: UInt64(page * 4096))
            if !lost.contains(page) { script.page(0, page, Self.content(page)) }
        }
        script.endSection()
        script.beginEnd()
        script.endSection()
        script.finish()
        let (qemu, bytes) = (loop.sourceQemu, script.buffer.bytes.bytesCopied)
        let writing = try WorkerThread("fake-qemu") { try? qemu.write(bytes.rawBytes) }
        let received = try loop.receive(until: StreamScript.tail)
        #expect(Array(received.suffix(StreamScript.tail.count)) == StreamScript.tail)
        #expect(writing.join(ms: 10_000))
        var mine = PageBuffer(byteCount: 4096)
        var theirs = PageBuffer(byteCount: 4096)
        var wrong = 0
        for page in 0..<Self.pages {
            try guest.read(at: UInt64(page * 4096), byteCount: 4096, to: &mine, bufferOffset: 0)
            try loop.window.read(at: UInt64(page * 4096), byteCount: 4096, to: &theirs, bufferOffset: 0)
            if !mine.bytes.equals(theirs.bytes) { wrong += 1 }
        }
        return (wrong, loop.source.sample())
    }

    @Test("pages that went wrong are found and sent again before the device state", arguments: [1, 2, 4])
    func repairs(lanes: Int) throws {
        let lost: Set = [0, 63, 64, 200, 201, 202, 700, 1023]
        let (wrong, sample) = try move(lost: lost, lanes: lanes, verifies: true)
        #expect(wrong == 0)
        // Whole stripes are sent again: of 0, 1, 3, 10 and 15.
        #expect(sample.repairedPages == 5 * 64)
        #expect(sample.auditedPages == UInt64(Self.pages) + 5 * 64)
    }

    @Test("without the audit they stay wrong: the test can fail") func canary() throws {
        let (wrong, sample) = try move(lost: [5, 500], lanes: 2, verifies: false)
        #expect(wrong == 2 && sample.auditedPages == 0)
    }

    @Test("nothing is sent again when nothing is wrong, and holes stay holes") func nothingWrong() throws {
        let (wrong, sample) = try move(lost: [], lanes: 2, verifies: true)
        #expect(wrong == 0 && sample.repairedPages == 0 && sample.auditedPages == UInt64(Self.pages))
    }

    @Test("an audit of a hostile peer is refused") func hostile() throws {
        var buffer = PageBuffer(byteCount: AuditPayload.bytesMax)
        AuditPayload.store(.init(first: 60, count: 5, digest: nil), at: 0, in: &buffer)
        #expect(refusal(buffer, bytes: 40) == .badPayload(.audit, "run 0 is not within 64 pages"))
        AuditPayload.store(.init(first: 60, count: 0, digest: nil), at: 0, in: &buffer)
        #expect(refusal(buffer, bytes: 40) != nil)
        #expect(refusal(buffer, bytes: 39) == .wrongLength(kind: .audit, length: 39))
        #expect(refusal(buffer, bytes: 0) == .wrongLength(kind: .audit, length: 0))
        AuditPayload.store(.init(first: 64, count: 64, digest: nil), at: 0, in: &buffer)
        #expect(refusal(buffer, bytes: 40) == nil)
    }

    private func refusal(_ buffer: borrowing PageBuffer, bytes: Int) -> FrameError? {
        let payload = buffer.bytes.extracting(0..<bytes)
        do throws(FrameError) {
            for index in 0..<(try AuditPayload.entryCount(payload)) { _ = try AuditPayload.entry(payload, at: index) }
            return nil
        } catch { return error }
    }
}
