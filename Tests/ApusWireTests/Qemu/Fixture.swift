import ApusSystem
import Foundation

@testable import ApusWire

/// The captures under Fixtures: u32 big-endian length and one LZ4 block (see capture.py).
enum Fixture {
    static func load(_ name: String) throws -> [UInt8] {
        guard let directory = Bundle.module.resourceURL else { throw CocoaError(.fileNoSuchFile) }
        let packed = [UInt8](try Data(contentsOf: directory.appending(path: "Fixtures/\(name)")))
        let size = Int(packed.span.rawBytes.bigEndian(at: 0, as: UInt32.self))
        let bytes = unpack(packed.dropFirst(4), size: size)
        guard bytes.count == size else { throw CocoaError(.fileReadCorruptFile) }
        return bytes
    }

    /// All captures of the given channels, sorted.
    static func names(_ channels: String...) -> [String] {
        let directory = Bundle.module.resourceURL?.appending(path: "Fixtures").path() ?? ""
        let names = (try? FileManager.default.contentsOfDirectory(atPath: directory)) ?? []
        return names.filter { name in channels.contains { name.hasSuffix("." + $0) } }.sorted()
    }

    private static func unpack(_ packed: ArraySlice<UInt8>, size: Int) -> [UInt8] {
        var out: [UInt8] = []
        out.reserveCapacity(size)
        var at = packed.startIndex
        func number(_ nibble: UInt8) -> Int {
            var value = Int(nibble)
            guard nibble == 15 else { return value }
            while packed[at] == 255 {
                value += 255
                at += 1
            }
            value += Int(packed[at])
            at += 1
            return value
        }
        while at < packed.endIndex {
            let token = packed[at]
            at += 1
            let literals = number(token >> 4)
            out.append(contentsOf: packed[at..<at + literals])
            at += literals
            guard at < packed.endIndex else { break }
            let distance = Int(packed[at]) | Int(packed[at + 1]) << 8
            at += 2
            for _ in 0..<number(token & 15) + 4 { out.append(out[out.count - distance]) }
        }
        return out
    }
}
