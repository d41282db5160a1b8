internal import Foundation
internal import Glibc
internal import Synchronization

/// A scratch folder and everything started for one experiment, removed again in the opposite order however the
/// experiment ends.
///
/// Nothing is found by its name: processes are ended by the ids they were given, namespaces carry this process's id.
public final class Lab: Sendable {
    /// Short, because UNIX socket paths may not exceed 107 bytes.
    public let folder: String
    public let number: Int
    public let logs: Logs

    /// What becomes of the folder, with the logs in it. What is kept is cleared away by the next program that experiments.
    public enum Logs: Sendable {
        case dropped
        /// Kept when the experiment fails.
        case ofFailures
        /// So, and agents tell more.
        case detailed

        /// `APUS_KEEP_LOGS`, for tests.
        public static var asked: Logs {
            ProcessInfo.processInfo.environment["APUS_KEEP_LOGS"] == nil ? .dropped : .detailed
        }
    }

    private struct Cleanup {
        let what: String
        let action: @Sendable () async throws -> Void
    }
    private struct State {
        var cleanups: [Cleanup] = []
        var processes = 0
        var pids: [Int32] = []
    }
    private let state = Mutex(State())
    private static let count = Mutex(0)

    private init(_ logs: Logs) throws {
        number = Self.count.withLock {
            $0 += 1
            return $0
        }
        self.logs = logs
        folder = "/tmp/apus-lab.\(getpid()).\(number)"
        try FileManager.default.createDirectory(
            atPath: folder, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
    }

    /// Runs `experiment` in a new laboratory and clears it away, also after an error or a cancellation.
    public static func with<Result: Sendable>(
        logs: Logs = .dropped, _ experiment: (Lab) async throws -> Result
    ) async throws -> Result {
        await Leftovers.sweep()
        let lab = try Lab(logs)
        do {
            let result = try await experiment(lab)
            await lab.clear(failed: false)
            return result
        } catch {
            await lab.clear(failed: true)
            throw error
        }
    }

    public func path(_ name: String) -> String { "\(folder)/\(name)" }

    public func makeFolder(_ name: String) throws -> String {
        try FileManager.default.createDirectory(atPath: path(name), withIntermediateDirectories: true)
        return path(name)
    }

    /// Registers something to undo.
    public func later(_ what: String, _ action: @escaping @Sendable () async throws -> Void) {
        state.withLock { $0.cleanups.append(Cleanup(what: what, action: action)) }
    }

    /// Programs of this experiment that run now and were not started by `start`: QEMUs that agents started.
    public var strangers: [Int32] { Leftovers.processes(naming: folder).map(\.pid).filter { !started.contains($0) } }

    private var started: [Int32] { state.withLock { $0.pids } }

    /// Starts a program that is ended with the laboratory; its output goes to `NAME-n.log`.
    public func start(_ name: String, _ words: [String]) async throws -> LabProcess {
        let number = state.withLock {
            $0.processes += 1
            return $0.processes
        }
        let process = try await LabProcess.start(name: name, words, log: path("\(name)-\(number).log"))
        state.withLock { $0.pids.append(process.pid) }
        later("process \(process.pid) (\(name))") { await process.stop() }
        return process
    }

    private func clear(failed: Bool) async {
        // A cancelled task can start no command; clearing must go on all the same.
        await Task.detached { [self] in
            while let next = state.withLock({ $0.cleanups.popLast() }) {
                do {
                    try await next.action()
                } catch {
                    FileHandle.standardError.write(Data("lab: cannot clear \(next.what): \(error)\n".utf8))
                }
            }
            let left = Leftovers.processes(naming: folder)
            for process in left {
                FileHandle.standardError.write(Data("lab: \(process.pid) was left behind: \(process.command)\n".utf8))
            }
            await Leftovers.end(left, naming: folder)
            if failed && logs != .dropped {
                FileHandle.standardError.write(Data("lab: the logs are in \(folder)\n".utf8))
            } else {
                try? FileManager.default.removeItem(atPath: folder)
            }
        }.value
    }
}
