import Foundation
import Testing

@testable import ApusSystem

/// The process `write-target`, see there for what it does. It ends with this value.
final class WriteTarget: Sendable {
    let process: ProcessHandle
    let shared: WriteTracker.Area
    let anonymous: WriteTracker.Area
    private let control: Socket
    private let folder: String

    var pid: Int32 { process.pid }
    var areas: [WriteTracker.Area] { [shared, anonymous] }
    var journal: String { "\(folder)/journal" }

    /// - Parameters:
    ///   - user: whom it runs as; nil: as these tests do.
    ///   - isFiltered: it may not call userfaultfd(2).
    init(mib: UInt64 = 32, user: UInt32? = nil, isFiltered: Bool = false) throws {
        folder = NSTemporaryDirectory() + "apus-target-\(UUID().uuidString)"
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        let (mine, its) = try Socket.pair()
        control = mine
        process = try Self.start(
            "write-target", ["\(mib << 20)"], log: "\(folder)/log", descriptors: [its.descriptor.number])
        let words = try Self.ask(mine, "i", answers: 3)
        shared = .init(address: words[0], byteCount: mib << 20)
        anonymous = .init(address: words[1], byteCount: mib << 20)
        // On a busy machine its sleeper may not have gone to sleep yet.
        for _ in 0..<3000 where Self.sleeper(of: process.pid) == nil { pause(ms: 10) }
    }

    /// A thread that waits in futex(2).
    static func sleeper(of pid: Int32) -> Int32? {
        ((try? ProcFile.numbers(in: "/proc/\(pid)/task")) ?? []).first {
            ((try? ProcFile.read("/proc/\(pid)/task/\($0)/syscall")) ?? "").hasPrefix("202 ")
        }
    }

    deinit {
        try? process.signal(SIGKILL)
        try? FileManager.default.removeItem(atPath: folder)
    }

    /// A program built beside the tests.
    static func start(
        _ name: String, _ arguments: [String], user: UInt32? = nil, log: String, descriptors: [Int32] = []
    ) throws -> ProcessHandle {
        let runner = try #require(ProcFile.link("/proc/self/exe"))
        let path = URL(fileURLWithPath: runner).deletingLastPathComponent().appendingPathComponent(name).path
        var words = [path] + arguments
        if let user { words = ["/usr/bin/setpriv", "--reuid=\(user)", "--clear-groups"] + words }
        return try ProcessHandle.spawn(
            SpawnRequest(
                executable: words[0], arguments: Array(words.dropFirst()), logPath: log, descriptors: descriptors))
    }

    var log: String { "\(folder)/log" }

    func standStill() throws { _ = try Self.ask(control, "p", answers: 1) }
    func goOn() throws { _ = try Self.ask(control, "g", answers: 1) }
    func write(at offset: UInt64) throws { _ = try Self.ask(control, "w", offset, answers: 1) }
    func read(at offset: UInt64) throws { _ = try Self.ask(control, "r", offset, answers: 1) }
    func discard(at offset: UInt64) throws { _ = try Self.ask(control, "d", offset, answers: 1) }
    func startSignals() throws { _ = try Self.ask(control, "s", answers: 1) }
    func endSignals() throws -> (sent: UInt64, handled: UInt64) {
        let words = try Self.ask(control, "S", answers: 2)
        return (words[0], words[1])
    }
    /// It answers, so its threads are well; the sleeper would have ended it otherwise.
    func isWell() -> Bool { process.exit == nil && (try? Self.ask(control, "i", answers: 3)) != nil }

    func kill() async {
        try? process.signal(SIGKILL)
        await withCheckedContinuation { ended in process.onExit { _ in ended.resume() } }
    }

    private static func ask(_ control: Socket, _ command: Character, _ argument: UInt64? = nil, answers: Int) throws
        -> [UInt64]
    {
        var bytes = PageBuffer(byteCount: 64)
        bytes.store(UInt64(command.asciiValue ?? 0), at: 0)
        bytes.store(argument ?? 0, at: 1)
        try control.write(bytes.bytes.extracting(0..<(argument == nil ? 1 : 9)))
        guard try control.readExactly(into: &bytes, 0..<answers * 8) else { throw SystemError.connectionReset }
        return (0..<answers).map { bytes.bytes.littleEndian(at: $0 * 8, as: UInt64.self) }
    }

    // MARK: What is inside

    var userfaultfds: [Int32] { Foreign.userfaultfds(of: pid) }

    /// Whether one of the areas is registered, by `smaps`, or has a protected page left, by `pagemap`.
    func isTracked() throws -> Bool {
        let tracked = try ProcFile.read("/proc/\(pid)/smaps").split(separator: "\n")
            .contains { $0.hasPrefix("VmFlags:") && $0.split(separator: " ").contains("uw") }
        return try tracked || areas.contains { try hasProtectedPage($0) }
    }

    private func hasProtectedPage(_ area: WriteTracker.Area) throws -> Bool {
        let file = try FileHandle(forReadingFrom: URL(fileURLWithPath: "/proc/\(pid)/pagemap"))
        defer { try? file.close() }
        try file.seek(toOffset: area.address / 4096 * 8)
        let bytes = try file.read(upToCount: Int(area.byteCount / 4096 * 8)) ?? Data()
        // Bit 57 of each word: write-protected by a userfaultfd.
        return stride(from: 7, to: bytes.count, by: 8).contains { bytes[$0] & 0x02 != 0 }
    }
}
