import ApusLab
import ArgumentParser
import Foundation

@main
struct LabCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "lab", abstract: "Real guests, real QEMUs, real links. Started by ./dev.",
        subcommands: [Demo.self, Bench.self, Soak.self, Trace.self])

    /// Runs `body` in a task that Ctrl-C cancels, so that every laboratory in it is cleared away.
    static func interruptible<Result: Sendable>(_ body: @escaping @Sendable () async throws -> Result) async throws
        -> Result
    {
        let task = Task { try await body() }
        let sources = [SIGINT, SIGTERM].map { number in
            signal(number, SIG_IGN)
            let source = DispatchSource.makeSignalSource(signal: number)
            source.setEventHandler { task.cancel() }
            source.resume()
            return source
        }
        defer { for source in sources { source.cancel() } }
        do {
            return try await task.value
        } catch  where task.isCancelled {
            note("interrupted; everything was cleared away")
            throw ExitCode(130)
        }
    }
}

struct Bench: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Measurements beside QEMU itself.",
        subcommands: [
            BenchMigrate.self, BenchLinesSweep.self, BenchForecast.self, BenchSpeed.self, BenchFlow.self,
            BenchInstall.self, BenchLines.self, BenchContent.self, BenchIndexing.self, BenchReturn.self,
            BenchRender.self,
        ],
        defaultSubcommand: BenchMigrate.self)
}

/// Progress for people; results go to standard output.
func note(_ text: String) { FileHandle.standardError.write(Data("\(text)\n".utf8)) }

extension Report {
    /// A report of this machine and day.
    static func empty(_ accelerator: Accelerator) -> Report {
        let release = (try? String(contentsOfFile: "/proc/sys/kernel/osrelease", encoding: .utf8)) ?? "?"
        let version = release.split(separator: ".").prefix(2).joined(separator: ".")
        return Report(
            machine: "\(ProcessInfo.processInfo.activeProcessorCount) cores, Linux \(version)",
            date: Date.now.formatted(.iso8601.year().month().day()), accelerator: accelerator, outcomes: [])
    }
}
