import ApusSystem
import Foundation
import Testing

@Suite("Processes by pidfd") struct ProcessTests {
    private let log = "/tmp/apus-process-\(UInt32.random(in: 0...UInt32.max)).log"

    private func shell(_ script: String, descriptors: [Int32] = [], directory: String? = nil) throws -> ProcessHandle {
        try ProcessHandle.spawn(
            SpawnRequest(
                executable: "/bin/sh", arguments: ["-c", script], workingDirectory: directory, logPath: log,
                descriptors: descriptors))
    }

    private func exit(of process: ProcessHandle) async -> ProcessExit? {
        let (stream, continuation) = AsyncStream.makeStream(of: ProcessExit.self)
        process.onExit {
            continuation.yield($0); continuation.finish()
        }
        for await exit in stream { return exit }
        return nil
    }

    @Test("exit codes and signals are told, output is appended") func exits() async throws {
        defer { try? FileManager.default.removeItem(atPath: log) }
        #expect(await exit(of: try shell("echo one; exit 3")) == .code(3))
        let sleeper = try shell("echo two >&2; exec sleep 100", directory: "/")
        #expect(sleeper.exit == nil)
        try sleeper.signal(SIGKILL)
        #expect(await exit(of: sleeper) == .signal(SIGKILL))
        #expect(sleeper.exit == .signal(SIGKILL))
        let error = #expect(throws: SystemError.self) { try sleeper.signal(SIGKILL) }
        #expect(error?.code == ESRCH)
        #expect(try ProcFile.read(log).hasPrefix("one\n"))
    }

    @Test("its own session, nothing inherited but what is given") func isolation() async throws {
        defer { try? FileManager.default.removeItem(atPath: log) }
        let pipe = Pipe()
        let script =
            "echo $(ls /proc/self/fd | tr '\\n' ' '); cut -d' ' -f1,6 /proc/$$/stat; pwd; echo hello >&3; head -c1 | wc -c"
        let child = try shell(script, descriptors: [pipe.fileHandleForWriting.fileDescriptor], directory: "/usr")
        try pipe.fileHandleForWriting.close()
        #expect(try pipe.fileHandleForReading.readToEnd() == Data("hello\n".utf8))
        #expect(await exit(of: child) == .code(0))
        let lines = try ProcFile.read(log).split(separator: "\n").map(String.init)
        // 4 is ls's own directory.
        #expect(lines == ["0 1 2 3 4", "\(child.pid) \(child.pid)", "/usr", "0"])
    }

    @Test("a missing binary and a missing directory are the kernel's errors") func missing() {
        defer { try? FileManager.default.removeItem(atPath: log) }
        let first = #expect(throws: SystemError.self) {
            try ProcessHandle.spawn(SpawnRequest(executable: "/nowhere/qemu", arguments: [], logPath: "/dev/null"))
        }
        #expect(first?.code == ENOENT && first?.reason == "No such file or directory")
        #expect(throws: SystemError.self) { try shell("true", directory: "/nowhere") }
    }

    @Test("a process that is not our child is watched too; an identity is only its own") func adopted() async throws {
        defer { try? FileManager.default.removeItem(atPath: log) }
        #expect(await exit(of: try shell("sleep 100 & echo $!")) == .code(0))
        let pid = try #require(Int32(try ProcFile.read(log).trimmingCharacters(in: .whitespacesAndNewlines)))
        let orphan = try ProcessHandle.open(pid: pid)
        let again = try ProcessHandle.open(orphan.identity)
        let other = ProcessIdentity(pid: pid, startTicks: orphan.identity.startTicks + 1)
        #expect(throws: SystemError.self) { try ProcessHandle.open(other) }
        try again.signal(SIGKILL)
        #expect(await exit(of: orphan) == .unknown)
        #expect(throws: SystemError.self) { try ProcessHandle.open(orphan.identity) }
    }

    @Test("start ticks are found behind any name") func stat() {
        let tail = " S 1 1 1 0 -1 4194560 2 0 0 0 0 0 0 0 20 0 1 0 12345 0 0"
        #expect(ProcFile.startTicks(stat: "7 (a) b) (" + ")" + tail) == 12345)
        #expect(ProcFile.startTicks(stat: "7 (short) S 1") == nil)
    }

    @Test("a lock is one process's, and ends with its value") func lock() throws {
        defer { try? FileManager.default.removeItem(atPath: log) }
        var first: FileLock? = try FileLock(path: log)
        let error = #expect(throws: SystemError.self) { try FileLock(path: log) }
        #expect(error?.code == EWOULDBLOCK)
        _ = first
        first = nil
        _ = try FileLock(path: log)
    }

    @Test("a child that is being started does not keep a lock") func lockAndFork() async throws {
        defer { try? FileManager.default.removeItem(atPath: log) }
        let path = log + ".lock"
        defer { try? FileManager.default.removeItem(atPath: path) }
        let forks = Monitor(0)
        let forking = Task.detached { [self] in
            for _ in 0..<150 {
                _ = await exit(of: try shell("true"))
                forks.update { $0 += 1 }
            }
        }
        while forks.read({ $0 }) < 150 { for _ in 0..<100 { _ = try FileLock(path: path) } }
        try await forking.value
    }
}
