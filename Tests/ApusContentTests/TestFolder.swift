import ApusContent
import ApusMemory
import ApusSystem
import Foundation
import Testing

/// A folder of one test; gone with it.
final class TestFolder: Sendable {
    let path: String
    private let isMount: Bool

    init() throws {
        path = NSTemporaryDirectory() + "content-" + UUID().uuidString
        isMount = false
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    }

    /// A file system of its own with so little room.
    init(byteCount: Int) throws {
        path = NSTemporaryDirectory() + "small-" + UUID().uuidString
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
        let code = unsafe mount("tmpfs", path, "tmpfs", 0, "size=\(byteCount)")
        isMount = true
        try #require(code == 0, "mount needs root")
    }

    deinit {
        // MNT_DETACH, which is no constant that Swift can import.
        if isMount { unsafe umount2(path, 2) }
        try? FileManager.default.removeItem(atPath: path)
    }

    func file(_ name: String) -> String { path + "/" + name }
    var names: [String] { (try? FileManager.default.contentsOfDirectory(atPath: path))?.sorted() ?? [] }
    func bytes(_ name: String) throws -> Data { try Data(contentsOf: URL(fileURLWithPath: file(name))) }
    func put(_ name: String, _ bytes: Data) throws { try bytes.write(to: URL(fileURLWithPath: file(name))) }

    /// As a kill would leave it to the next process: everything but the lock.
    func copied() throws -> TestFolder {
        let copy = try TestFolder()
        for name in names where name != "lock" {
            try FileManager.default.copyItem(atPath: file(name), toPath: copy.file(name))
        }
        return copy
    }
}

let isRoot = geteuid() == 0

func testKey(_ domain: String = "tenant") -> ContentKey {
    ContentKey(secret: Array(repeating: 7, count: ContentKey.secretBytes), domain: domain)
}

/// Page number n of its kind; different from all others, and the same in every run.
func page(_ number: Int, compressible: Bool = false) -> [UInt8] {
    var state = UInt64(number + 1) &* 0x9E37_79B9_7F4A_7C15
    var bytes: [UInt8] = []
    bytes.reserveCapacity(4096)
    while bytes.count < 4096 {
        state ^= state << 13
        state ^= state >> 7
        state ^= state << 17
        let word = compressible ? state & 0xff : state
        for shift in 0..<8 { bytes.append(UInt8(truncatingIfNeeded: word >> UInt64(shift * 8))) }
    }
    return bytes
}

func littleEndian(_ word: UInt64) -> [UInt8] { (0..<8).map { UInt8(truncatingIfNeeded: word >> UInt64($0 * 8)) } }

let zeroPage = [UInt8](repeating: 0, count: 4096)

/// Long enough ago that its file system's clock cannot have stood still since.
func age(_ path: String, seconds: Int = 3600) {
    var times = [timeval(tv_sec: time(nil) - seconds, tv_usec: 0), timeval(tv_sec: time(nil) - seconds, tv_usec: 0)]
    #expect(unsafe utimes(path, &times) == 0)
}
