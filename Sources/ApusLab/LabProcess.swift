internal import Foundation
internal import Glibc
internal import Subprocess
internal import Synchronization
internal import SystemPackage

/// Runs a command to its end.
///
/// - Parameter showing: its standard error goes to this terminal as it comes, instead of into the error.
/// - Returns: what it printed on standard output.
/// - Throws: `LabError.commandFailed`, `LabError.timedOut`.
@discardableResult
func command(_ words: [String], seconds: Double = 20, showing: Bool = false) async throws -> String {
    let name = words.joined(separator: " ")
    return try await withThrowingTaskGroup(of: String.self) { group in
        group.addTask {
            let arguments = Arguments(Array(words.dropFirst()))
            let status: TerminationStatus, output: String, errors: String
            if showing {
                let result = try await run(
                    .name(words[0]), arguments: arguments, output: .string(limit: 1 << 20),
                    error: .currentStandardError)
                (status, output, errors) = (result.terminationStatus, result.standardOutput, "")
            } else {
                let result = try await run(
                    .name(words[0]), arguments: arguments, output: .string(limit: 1 << 20),
                    error: .string(limit: 1 << 16))
                (status, output, errors) = (result.terminationStatus, result.standardOutput, result.standardError)
            }
            guard case .exited(0) = status else {
                throw LabError.commandFailed(command: name, status: "\(status)", output: errors + output)
            }
            return output
        }
        group.addTask {
            try await ContinuousClock().sleep(for: .seconds(seconds))
            throw LabError.timedOut(what: name, seconds: seconds)
        }
        defer { group.cancelAll() }
        return try await group.next() ?? ""
    }
}

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
                    .name(words[0]), arguments: Arguments(Array(words.dropFirst())), input: .none,
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

/// CPU time of a process from /proc, in seconds.
public struct CPUTime: Sendable, Equatable {
    /// All threads, those that have ended too.
    public var process: Double
    /// The vCPU threads of a QEMU that was started with `debug-threads=on`.
    public var vcpus: Double
    /// What QEMU spent on anything but running the guest.
    public var besideGuest: Double { process - vcpus }

    public static func of(pid: Int32) -> CPUTime? {
        guard let process = seconds(in: "/proc/\(pid)/stat") else { return nil }
        var vcpus = 0.0
        for thread in (try? FileManager.default.contentsOfDirectory(atPath: "/proc/\(pid)/task")) ?? [] {
            let folder = "/proc/\(pid)/task/\(thread)"
            guard let name = try? String(contentsOfFile: "\(folder)/comm", encoding: .utf8), name.hasPrefix("CPU ")
            else { continue }
            vcpus += seconds(in: "\(folder)/stat") ?? 0
        }
        return CPUTime(process: process, vcpus: vcpus)
    }

    private static func seconds(in path: String) -> Double? {
        // After the name, which may hold spaces, the 12th and 13th fields are user and system ticks.
        guard let text = try? String(contentsOfFile: path, encoding: .utf8), let end = text.lastIndex(of: ")")
        else { return nil }
        let fields = text[text.index(after: end)...].split(separator: " ")
        guard fields.count > 12, let user = Double(fields[11]), let system = Double(fields[12]) else { return nil }
        return (user + system) / Double(sysconf(Int32(_SC_CLK_TCK)))
    }
}
