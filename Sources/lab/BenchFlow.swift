import ApusFlow
import ApusLab
import ApusMemory
import ApusSystem
import ApusWire
import ArgumentParser
import CMallocCount

struct BenchFlow: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "flow", abstract: "The data plane alone, over TCP on loopback: throughput, CPU and allocations.",
        discussion: """
            A thread plays the source QEMU and writes a prepared stream; the rest is the product: reader, lanes, \
            installer. Both ends share this machine's cores.
            """)

    @Option(help: "MiB of guest memory.") var region = 1024
    @Option(help: "Lane counts to try.") var lanes = "1,2,4"
    @Option(help: "Repetitions.") var runs = 3

    func run() async throws {
        print("content         lanes      MB/s   source CPU s/GiB   dest CPU s/GiB   mallocs/page")
        for content in Content.allCases {
            for count in lanes.split(separator: ",").compactMap({ Int($0) }) {
                let results = try (0..<runs).map { _ in try measure(content, lanes: count) }
                let rates = results.map(\.mbPerS).sorted()
                let middle = results.sorted { $0.mbPerS < $1.mbPerS }[results.count / 2]
                print(
                    pad(content.rawValue, 14), pad("\(count)", -6), pad(fixed(rates[rates.count / 2], 0), -9),
                    pad(fixed(middle.sourceS, 2), -18), pad(fixed(middle.destinationS, 2), -16),
                    pad(fixed(middle.mallocsPerPage, 4), -14),
                    "  [\(fixed(rates[0], 0)) … \(fixed(rates[rates.count - 1], 0))]")
            }
        }
    }

    enum Content: String, CaseIterable { case incompressible, compressible, zero }

    struct Result {
        var mbPerS: Double
        var sourceS: Double
        var destinationS: Double
        var mallocsPerPage: Double
    }

    private func measure(_ content: Content, lanes: Int) throws -> Result {
        let loop = try Loopback(lanes: lanes, blocks: [("pc.ram", UInt64(region) << 20)])
        defer { loop.stop() }
        let pages = region * 256
        // The first quarter lets every lane make its contexts; allocations are counted in the rest, the steady state.
        let (head, rest) = try streams(content, loop.layout, pages)
        let start = Instant.now()
        try loop.sourceQemu.write(head.bytes)
        let before = malloc_count()
        try loop.sourceQemu.write(rest.bytes)
        let mallocs = malloc_count() - before
        _ = try loop.receive(until: StreamScript.tail)
        let seconds = Instant.now().ms(since: start) / 1000
        let gib = Double(region) / 1024
        return Result(
            mbPerS: Double(region) * 1.048576 / seconds,
            sourceS: Double(loop.source.sample().cpuNs) / 1e9 / gib,
            destinationS: Double(loop.destination.sample().cpuNs) / 1e9 / gib,
            mallocsPerPage: Double(mallocs) / Double(pages * 3 / 4))
    }

    /// The whole migration in two parts, made before the clock runs.
    private func streams(
        _ content: Content, _ layout: Layout, _ pages: Int
    ) throws -> (StreamBuffer, StreamBuffer) {
        let samples = samples(content)
        var head = try StreamScript(layout)
        var rest = try StreamScript(continuing: layout)
        func fill(_ script: inout StreamScript, _ range: Range<Int>) {
            for part in stride(from: range.lowerBound, to: range.upperBound, by: 4096) {
                script.beginPart()
                for page in part..<min(part + 4096, range.upperBound) {
                    script.page(0, page, content == .zero ? nil : samples[page % samples.count])
                }
                script.endSection()
            }
        }
        fill(&head, 0..<pages / 4)
        fill(&rest, pages / 4..<pages)
        rest.beginEnd()
        rest.endSection()
        rest.finish()
        return (head.buffer, rest.buffer)
    }

    private func samples(_ content: Content) -> [[UInt8]] {
        var state: UInt64 = 88_172_645_463_325_252
        return (0..<256).map { page in
            (0..<4096).map { index in
                state ^= state << 13
                state ^= state >> 7
                state ^= state << 17
                switch content {
                case .incompressible: return UInt8(truncatingIfNeeded: state)
                case .compressible: return UInt8(truncatingIfNeeded: UInt64(page + index / 96) &+ state % 3)
                case .zero: return 0
                }
            }
        }
    }
}

func fixed(_ value: Double, _ digits: Int) -> String {
    var scale = 1.0
    for _ in 0..<digits { scale *= 10 }
    let scaled = (value * scale).rounded() / scale
    let text = "\(scaled)"
    return digits == 0 ? String(text.prefix { $0 != "." }) : text
}

/// Negative widths align to the right.
func pad(_ text: String, _ width: Int) -> String {
    let blanks = String(repeating: " ", count: max(0, abs(width) - text.count))
    return width < 0 ? blanks + text : text + blanks
}
