internal import Subprocess
internal import SystemPackage

/// Runs a command to its end.
///
/// - Parameter showing: what it prints goes to this terminal as it comes, instead of into the result and the error.
/// - Returns: what it printed on standard output.
/// - Throws: `LabError.commandFailed`, `LabError.timedOut`.
@discardableResult
func command(
    _ words: [String], environment: [String: String] = [:], seconds: Double = 20, showing: Bool = false
) async throws -> String {
    let name = words.joined(separator: " ")
    return try await withThrowingTaskGroup(of: String.self) { group in
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
                    configuration, output: .string(limit: 1 << 20), error: .string(limit: 1 << 16))
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

/// A name is looked up in PATH, as a shell does; a path is taken as it is.
func executable(_ word: String) -> Executable { word.contains("/") ? .path(FilePath(word)) : .name(word) }
