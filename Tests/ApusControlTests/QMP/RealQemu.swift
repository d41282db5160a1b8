import ApusQMP
import Foundation
import Testing

/// A QEMU started by a test; killed with it.
final class RealQemu: Sendable {
    /// Launchers of the versions at hand: Debian 12's, and the one that `APUS_QEMU10` names.
    static let launchers: [String] =
        ["/usr/bin/qemu-system-x86_64", ProcessInfo.processInfo.environment["APUS_QEMU10"]]
        .compactMap { $0 }.filter { FileManager.default.isExecutableFile(atPath: $0) }

    let process: Process
    let directory: URL
    var qmpPath: String { directory.appending(path: "qmp.sock").path }

    init(_ launcher: String, _ arguments: [String] = ["-m", "100"], incoming: Bool = false) throws {
        directory = URL(filePath: "/tmp/apus-q-\(UInt32.random(in: 0...UInt32.max))")
        try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
        process = Process()
        process.executableURL = URL(filePath: launcher)
        let socket = directory.appending(path: "qmp.sock").path
        process.arguments =
            [
                "-accel", "tcg", "-M", "q35", "-nodefaults", "-display", "none", "-qmp",
                "unix:\(socket),server=on,wait=off",
            ]
            + (incoming ? ["-incoming", "defer"] : []) + arguments
        process.standardInput = FileHandle.nullDevice
        try process.run()
    }

    func connect() async throws -> QMPClient {
        for _ in 0..<200 {
            if let client = try? await QMPClient.connect(path: qmpPath) { return client }
            try await Task.sleep(for: .milliseconds(50))
        }
        return try await QMPClient.connect(path: qmpPath)
    }

    deinit {
        if process.isRunning { kill(process.processIdentifier, SIGKILL) }
        process.waitUntilExit()
        try? FileManager.default.removeItem(at: directory)
    }
}
