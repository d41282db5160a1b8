internal import Subprocess
internal import SystemPackage

/// How a command ended, and what it printed.
public struct CommandResult: Sendable {
    /// nil: a signal ended it.
    public var exitCode: Int32?
    public var status: String
    public var output: String
    public var errors: String
}

/// A migration of some minutes told in JSON lines, several times over.
private let outputBytesMax = 32 << 20

/// Runs a command to its end, whatever that is.
///
/// - Parameter showing: what it prints goes to this terminal as it comes, instead of into the result.
/// - Throws: `LabError.timedOut`; what prevents its start.
func attempt(
    _ words: [String], environment: [String: String] = [:], seconds: Double, showing: Bool = false
) async throws -> CommandResult {
    try await withThrowingTaskGroup(of: CommandResult.self) { group in
        group.addTask {
            let configuration = Configuration(
                executable: executable(words[0]), arguments: Arguments(Array(words.dropFirst())),
                environment: .inherit.updating(
                    Dictionary(uniqueKeysWithValues: environment.map { (Environment.Key(stringLiteral: $0), $1) })))
            let status: TerminationStatus, output: String, errors: String
            if showing {
                let result = try await run(
                    configuration, output: .currentStandardOutput, error: .currentStandardError)
                (status, output, errors) = (result.terminationStatus, "", "")
            } else {
                let result = try await run(
                    configuration, output: .string(limit: outputBytesMax), error: .string(limit: 1 << 16))
                (status, output, errors) = (result.terminationStatus, result.standardOutput, result.standardError)
            }
            var code: Int32?
            if case .exited(let number) = status { code = number }
            return CommandResult(exitCode: code, status: "\(status)", output: output, errors: errors)
        }
        group.addTask {
            try await ContinuousClock().sleep(for: .seconds(seconds))
            throw LabError.timedOut(what: words.joined(separator: " "), seconds: seconds)
        }
        defer { group.cancelAll() }
        guard let result = try await group.next() else { throw CancellationError() }
        return result
    }
}

/// Runs a command that must succeed.
///
/// - Parameter showing: what it prints goes to this terminal as it comes, instead of into the result and the error.
/// - Returns: what it printed on standard output.
/// - Throws: `LabError.commandFailed`, `LabError.timedOut`.
@discardableResult
func command(
    _ words: [String], environment: [String: String] = [:], seconds: Double = 20, showing: Bool = false
) async throws -> String {
    let result = try await attempt(words, environment: environment, seconds: seconds, showing: showing)
    guard result.exitCode == 0 else {
        throw LabError.commandFailed(
            command: words.joined(separator: " "), status: result.status, output: result.errors + result.output)
    }
    return result.output
}

/// A name is looked up in PATH, as a shell does; a path is taken as it is.
func executable(_ word: String) -> Executable { word.contains("/") ? .path(FilePath(word)) : .name(word) }
