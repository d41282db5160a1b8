import ApusMemory
import ApusSystem
import Testing

@testable import ApusFlow

@Suite("looks between QEMU's rounds") struct WrittenSampleTests {
    private enum LookError: Error { case none }
    private static let pages = 16_384
    private static let byteCount = UInt64(pages * 4096)

    private func memory() throws -> (window: GuestWindow, reader: GuestReader) {
        let window = try GuestWindow(
            try Descriptor.memoryFile(byteCount: Self.byteCount), fileOffset: 0, byteCount: Self.byteCount)
        write(0..<Self.pages, 1, window)
        return (window, GuestReader(try Layout([("pc.ram", Self.byteCount)]), [.mapped(window)]))
    }

    private func write(_ pages: some Sequence<Int>, _ version: UInt8, _ window: GuestWindow) {
        for page in pages { window.install([UInt8](repeating: version, count: 4096).rawBytes, at: UInt64(page * 4096)) }
    }

    /// In one piece, at a stride that its own might resonate with, and anywhere.
    @Test(arguments: ["piece", "stride", "random"]) func whatWasWrittenIsCounted(how: String) throws {
        let (window, reader) = try memory()
        guard var sample = try WrittenSample.begin(reader) else { throw LookError.none }
        #expect(try sample.writtenPages() == 0)
        var seed = SystemRandomNumberGenerator()
        let written: Set<Int> =
            switch how {
            case "piece": Set(4096..<8192)
            case "stride": Set(stride(from: 0, to: Self.pages, by: 8))
            default: Set((0..<4096).map { _ in Int.random(in: 0..<Self.pages, using: &seed) })
            }
        write(written, 2, window)
        let seen = try #require(try sample.writtenPages())
        // Six standard deviations of the worst of them.
        #expect((0.7...1.3).contains(seen / Double(written.count)), "\(seen) of \(written.count)")
        sample.renew()
        #expect(try sample.writtenPages() == 0)
        write(0..<Self.pages, 3, window)
        #expect(try sample.writtenPages() == Double(Self.pages))
    }

    @Test func aFewPagesAreNotTold() throws {
        let (window, reader) = try memory()
        guard var sample = try WrittenSample.begin(reader) else { throw LookError.none }
        write(0..<64, 2, window)
        #expect(try sample.writtenPages() == nil)
    }

    @Test func whatCannotBeReadIsNotLookedAt() throws {
        let reader = GuestReader(try Layout([("pc.ram", Self.byteCount)]), [.stream])
        if try WrittenSample.begin(reader) != nil { Issue.record("there is nothing to look at") }
    }
}
