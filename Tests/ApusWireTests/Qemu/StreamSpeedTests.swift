import ApusSystem
import ApusWire
import Foundation
import Testing

/// Reads and writes one synthetic stream. Tiny in a normal run; with APUS_BENCH_MIB=256 it prints what a page costs.
struct StreamSpeedTests {
    private static let mebibytes = ProcessInfo.processInfo.environment["APUS_BENCH_MIB"].flatMap { Int($0) } ?? 1

    /// A stream whose RAM has `everyZero`-th pages zero and the others full, in one section.
    private static func stream(pages: Int, zeroEvery: Int, named: Bool) throws -> StreamBuffer {
        var writer = QemuStreamWriter()
        var buffer = StreamBuffer(capacity: pages * 4112 + 4096)
        writer.header(machine: "pc-q35-7.2", to: &buffer)
        writer.sectionStart(id: 2, name: "ram", version: 4, to: &buffer)
        let table = try RamBlockTable([RamBlock(name: "pc.ram", usedLength: UInt64(pages) << 12)])
        writer.blockList(table, withAddresses: false, to: &buffer)
        for page in 0..<pages {
            if named { writer.forgetBlock() }
            if page % zeroEvery == 0 {
                writer.zero(block: 0, offset: UInt64(page) << 12, to: &buffer)
            } else {
                writer.page(block: 0, offset: UInt64(page) << 12, to: &buffer)
                for word in 0..<512 { buffer.append(UInt64(word)) }
            }
        }
        writer.endOfRecords(to: &buffer)
        return buffer
    }

    @Test("Cost of a page record", arguments: [(2, false), (1_000_000, false), (1_000_000, true)])
    func reading(zeroEvery: Int, named: Bool) throws {
        let pages = Self.mebibytes * 256
        let stream = try Self.stream(pages: pages, zeroEvery: zeroEvery, named: named)
        var samples: [Double] = []
        for _ in 0..<5 {
            var sum: UInt64 = 0
            var count = 0
            let clock = ContinuousClock()
            let time = try clock.measure {
                var reader = QemuStreamReader()
                let bytes = stream.bytes
                var at = 0
                reading: while true {
                    switch try reader.next(bytes.extracting(droppingFirst: at)) {
                    case .needMore: break reading
                    case .element(let element, let length):
                        at += length
                        switch element {
                        case .page(_, let offset), .zero(_, let offset):
                            sum &+= offset
                            count += 1
                        default: break
                        }
                    }
                }
            }
            #expect(count == pages)
            #expect(sum == UInt64(pages) * UInt64(pages - 1) / 2 * 4096)
            samples.append(Double(time.components.attoseconds) / 1e9 / Double(pages))
        }
        if Self.mebibytes > 1 {
            print("reader: \(pages) pages, zero every \(zeroEvery), named \(named): \(samples.min() ?? 0) ns a page")
        }
    }

    @Test func writingHeads() throws {
        let pages = Self.mebibytes * 256
        var writer = QemuStreamWriter(
            table: try RamBlockTable([RamBlock(name: "pc.ram", usedLength: UInt64(pages) << 12)]))
        var buffer = StreamBuffer(capacity: 64 * 8)
        var samples: [Double] = []
        for _ in 0..<5 {
            var total = 0
            let time = ContinuousClock().measure {
                for batch in stride(from: 0, to: pages, by: 64) {
                    buffer.removeAll()
                    for page in batch..<batch + 64 { writer.page(block: 0, offset: UInt64(page) << 12, to: &buffer) }
                    total += buffer.count
                }
            }
            #expect((8 * pages...8 * pages + 7).contains(total))
            samples.append(Double(time.components.attoseconds) / 1e9 / Double(pages))
        }
        if Self.mebibytes > 1 { print("writer: \(samples.min() ?? 0) ns a head") }
    }
}
