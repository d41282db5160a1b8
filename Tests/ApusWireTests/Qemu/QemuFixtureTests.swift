import ApusSystem
import Testing

@testable import ApusWire

/// Streams captured from real QEMUs; the file name says version, machine type, mode and channel.
struct QemuFixtureTests {
    static let streams = Fixture.names("main")

    @Test("dump", arguments: streams)
    func dump(name: String) throws {
        var feeder = Feeder()
        let bytes = try Fixture.load(name)
        do { try feeder.feed(bytes) } catch { print(name, "ERROR", error) }
        var line = ""
        var last = ""
        var count = 0
        for seen in feeder.seen {
            let text = String(String(describing: seen.element).prefix { $0 != "(" && $0 != "." })
            var t = text
            if case .command(let c) = seen.element { t = String(describing: c) }
            if case .zero(let b, _) = seen.element { t = "zero\(b)" }
            if case .page(let b, _) = seen.element { t = "page\(b)" }
            if case .deviceBytes = seen.element { t = "device\(seen.bytes.count)" }
            if case .bitmapChunk(let f) = seen.element { t = "bm\(f)" }
            if t == last { count += 1; continue }
            if count > 1 { line += "*\(count)" }
            line += " " + t
            last = t
            count = 1
        }
        print("## \(name) \(bytes.count) left \(feeder.left):\(line)")
        print("   ", feeder.reader.blocks.map { "\($0.name):\($0.usedLength)" })
    }
}
