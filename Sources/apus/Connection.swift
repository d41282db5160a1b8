import ApusAPI
import ArgumentParser
import Foundation

/// What every command that asks the agent takes.
struct Connection: ParsableArguments {
    @Option(name: .customLong("agent"), help: ArgumentHelp("The agent's socket.", valueName: "path"))
    var socket: String?

    @Flag(help: "Print the API's JSON.")
    var json = false

    static let defaultSocket = "/run/apus/agent.sock"

    var path: String { socket ?? ProcessInfo.processInfo.environment["APUS_AGENT"] ?? Self.defaultSocket }

    /// Runs `body` with a client; tells its failure and turns it into an exit code.
    func run(_ body: (AgentClient) async throws -> Void) async throws {
        let client = AgentClient(socket: path)
        let result: Result<Void, any Error>
        do { result = .success(try await body(client)) } catch { result = .failure(error) }
        await client.shutdown()
        do {
            try result.get()
        } catch let problem as Problem {
            tell(problem)
            throw ExitStatus.failed.code
        } catch let error as AgentUnreachable {
            tell(error.problem)
            throw ExitStatus.unreachable.code
        }
    }

    func tell(_ problem: Problem) {
        Output.error(json ? Output.json(problem) : Text.problem(problem))
    }

    /// JSON or text, as asked.
    func show(_ value: some Encodable, _ text: @autoclosure () -> String) {
        Output.line(json ? Output.json(value) : text())
    }
}

/// The process's two streams.
enum Output {
    static func line(_ text: String) { FileHandle.standardOutput.write(Data((text + "\n").utf8)) }
    static func error(_ text: String) { FileHandle.standardError.write(Data((text + "\n").utf8)) }
    static func raw(_ text: String) { FileHandle.standardOutput.write(Data(text.utf8)) }

    static func json(_ value: some Encodable, pretty: Bool = true) -> String {
        guard let data = try? APICoding.encoder(pretty: pretty).encode(value) else { return "null" }
        return String(decoding: data, as: UTF8.self)
    }
}
