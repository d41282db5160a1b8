import ApusSystem
import ArgumentParser

struct BenchInstall: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "install", abstract: "Ways to put received pages into guest RAM, one thread, runs of 64 pages.",
        discussion: "Fresh: the page does not exist yet, as in the first round. Again: it is overwritten, as later.")

    @Option(help: "MiB of guest memory.") var region = 1024
    @Option(help: "Repetitions; the median is shown.") var runs = 5

    private static let runBytes = 64 * 4096

    func run() throws {
        print("way                                    fresh ns/page   again ns/page")
        try row("mapped file, copied through the mapping") { window, source, offset in
            window.install(source, at: offset)
        }
        try row("mapped file, written through the file") { window, source, offset in
            try window.installFresh(source, at: offset)
        }
        try processRow()
    }

    private func row(_ name: String, _ install: (GuestWindow, RawSpan, UInt64) throws -> Void) throws {
        var fresh: [Double] = []
        var again: [Double] = []
        for _ in 0..<runs {
            let file = try Descriptor.memoryFile(byteCount: UInt64(region) << 20)
            let window = try GuestWindow(file, fileOffset: 0, byteCount: UInt64(region) << 20)
            fresh.append(try pass { try install(window, $0, $1) })
            again.append(try pass { try install(window, $0, $1) })
        }
        print(pad(name, 40), pad(fixed(median(fresh), 0), -10), pad(fixed(median(again), 0), -15))
    }

    /// Into anonymous memory of a process, as of a QEMU that nobody shares RAM with; here our own.
    private func processRow() throws {
        var fresh: [Double] = []
        var again: [Double] = []
        for _ in 0..<runs {
            let memory = PageBuffer(byteCount: region << 20)
            let window = memory.asProcessWindow()
            fresh.append(try pass { try window.install($0, at: $1) })
            again.append(try pass { try window.install($0, at: $1) })
        }
        print(pad("process_vm_writev", 40), pad(fixed(median(fresh), 0), -10), pad(fixed(median(again), 0), -15))
    }

    /// Nanoseconds per page for one pass over the region.
    private func pass(_ install: (RawSpan, UInt64) throws -> Void) throws -> Double {
        var source = PageBuffer(byteCount: Self.runBytes)
        for word in stride(from: 0, to: Self.runBytes, by: 8) { source.store(UInt64(word) | 1, at: word) }
        let start = Instant.now()
        for offset in stride(from: 0, to: region << 20, by: Self.runBytes) {
            try install(source.bytes, UInt64(offset))
        }
        return Instant.now().ms(since: start) * 1e6 / Double(region * 256)
    }

    private func median(_ values: [Double]) -> Double { values.sorted()[values.count / 2] }
}
