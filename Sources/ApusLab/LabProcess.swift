internal import Foundation
internal import Glibc
internal import Subprocess
internal import Synchronization
internal import SystemPackage

/// A program that runs beside the laboratory, its output in a log file; ended by its own id, never by its name.
public final class LabProcess: Sendable {
    public let name: String
    public let pid: Int32
    public let log: String
    private let ended: Mutex<String?>

    private init(name: String, pid: Int32, log: String) {
        self.name = name
        self.pid = pid
        self.log = log
        ended = Mutex(nil)
    }

    /// How it ended; nil while it runs.
    public var status: String? { ended.withLock { $0 } }

    static func start(name: String, _ words: [String], log: String) async throws -> LabProcess {
        let file = try FileDescriptor.open(
            FilePath(log), .writeOnly, options: [.create, .append, .closeOnExec], permissions: .ownerReadWrite)
        let (started, announce) = AsyncThrowingStream<LabProcess, any Error>.makeStream()
        // Outlives the caller: a process lasts until `stop`, whatever becomes of the task that started it.
        _ = Task.detached {
            do {
                let result = try await run(
                    executable(words[0]), arguments: Arguments(Array(words.dropFirst())), input: .none,
                    output: .fileDescriptor(file, closeAfterSpawningProcess: false),
                    error: .fileDescriptor(file, closeAfterSpawningProcess: true)
                ) { execution in
                    let process = LabProcess(name: name, pid: execution.processIdentifier.value, log: log)
                    announce.yield(process)
                    announce.finish()
                    return process
                }
                result.closureResult.ended.withLock { $0 = "\(result.terminationStatus)" }
            } catch {
                announce.finish(throwing: error)
            }
        }
        for try await process in started { return process }
        throw LabError.processEnded(name: name, status: "not started", log: "")
    }

    /// - Throws: `LabError.processEnded` when the process is no longer there.
    public func mustRun() throws {
        if let status { throw LabError.processEnded(name: name, status: status, log: logEnd()) }
    }

    public func logEnd(characters: Int = 600) -> String {
        String(((try? String(contentsOfFile: log, encoding: .utf8)) ?? "").suffix(characters))
    }

    public func signal(_ number: Int32) {
        ended.withLock { if $0 == nil { _ = kill(pid, number) } }
    }

    /// Asks it to end, then ends it; returns when it is gone.
    public func stop(graceSeconds: Double = 3) async {
        signal(SIGTERM)
        signal(SIGCONT)
        if await isGone(within: graceSeconds) { return }
        signal(SIGKILL)
        _ = await isGone(within: 5)
    }

    private func isGone(within seconds: Double) async -> Bool {
        (try? await wait(for: "\(name) to end", seconds: seconds) { status }) != nil
    }
}
