import ApusAPI
public import ApusControl
public import ArgumentParser
import Foundation
import Logging
import Yams

struct AgentVerb: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "agent",
        abstract: "Run the agent of this host, in the foreground.",
        discussion: """
            SIGTERM and SIGINT stop it in good order: VMs run on, outgoing migrations are aborted. The next agent finds \
            the VMs again. Options win over the configuration file, whose keys Docs/Config.md describes.
            """)

    @Option(help: ArgumentHelp("A YAML configuration file.", valueName: "file")) var config: String?
    @Option(help: ArgumentHelp("Where the database is (default /var/lib/apus).", valueName: "dir")) var state: String?
    @Option(
        name: .customLong("run"),
        help: ArgumentHelp("Where sockets and logs are (default /run/apus).", valueName: "dir")) var runDirectory:
        String?
    @Option(help: ArgumentHelp("Where other agents bring VMs (default 127.0.0.1:7421).", valueName: "address:port"))
    var listen: String?
    @Option(help: ArgumentHelp("Serve the API on TCP too.", valueName: "address:port")) var apiListen: String?
    @Flag(help: "Listen beyond loopback without TLS.") var insecure = false
    @Option(help: "text or json.") var logFormat: AgentConfig.LogFormat?
    @Option(help: "trace, debug, info, notice, warning, error or critical.") var logLevel: String?

    mutating func run() async throws {
        do {
            let config = try settings()
            guard let level = Logger.Level(rawValue: config.logLevel) else {
                throw Problem(
                    "config-invalid", "logLevel is \"\(config.logLevel)\".",
                    advice: "It can be trace, debug, info, notice, warning, error or critical.")
            }
            LoggingSystem.bootstrap { label in
                var handler: any LogHandler =
                    config.logFormat == .json
                    ? JSONLogHandler(label: label) : StreamLogHandler.standardError(label: label)
                handler.logLevel = level
                return handler
            }
            try await Agent(config: config, logger: Logger(label: "apus")).run()
        } catch let problem as Problem {
            Output.error(Text.problem(problem))
            throw ExitStatus.failed.code
        }
    }

    private func settings() throws -> AgentConfig {
        var settings = try config.map(ConfigFile.load) ?? AgentConfig()
        if let state { settings.stateDirectory = Self.absolute(state) }
        if let runDirectory { settings.runDirectory = Self.absolute(runDirectory) }
        if let listen { settings.link.listen = listen }
        if let apiListen { settings.api.listen = apiListen }
        if insecure { settings.link.insecure = true }
        if let logFormat { settings.logFormat = logFormat }
        if let logLevel { settings.logLevel = logLevel }
        return settings
    }

    static func absolute(_ path: String) -> String {
        path.hasPrefix("/") ? path : FileManager.default.currentDirectoryPath + "/" + path
    }
}

extension AgentConfig.LogFormat: ExpressibleByArgument {}

enum ConfigFile {
    /// - Throws: `Problem` `config-unreadable`, `config-key-unknown`, `config-invalid`.
    static func load(_ path: String) throws -> AgentConfig {
        guard let data = FileManager.default.contents(atPath: path) else {
            throw Problem("config-unreadable", "The configuration file \(path) cannot be read.")
        }
        return try parse(String(decoding: data, as: UTF8.self), name: path)
    }

    static func parse(_ text: String, name: String) throws -> AgentConfig {
        // An empty file, or one of comments only, is a configuration of defaults.
        let empty = text.split(whereSeparator: \.isNewline).allSatisfy { line in
            let trimmed = line.drop { $0 == " " || $0 == "\t" }
            return trimmed.isEmpty || trimmed.hasPrefix("#") || trimmed == "---"
        }
        if empty { return AgentConfig() }
        do {
            return try YAMLDecoder().decode(AgentConfig.self, from: text)
        } catch let error as DecodingError {
            if let problem = error.underlying as? Problem { throw problem }
            throw Problem("config-invalid", "\(name): \(error.told).")
        } catch let error as YamlError {
            throw Problem("config-invalid", "\(name) is not YAML: \(error)")
        }
    }
}

extension DecodingError {
    private var context: Context? {
        switch self {
        case .typeMismatch(_, let context), .valueNotFound(_, let context), .keyNotFound(_, let context),
            .dataCorrupted(let context):
            context
        @unknown default: nil
        }
    }
    var underlying: (any Error)? { context?.underlyingError }

    /// The key, and what is wrong with its value.
    var told: String {
        guard let context else { return "\(self)" }
        let path = context.codingPath.map(\.stringValue).joined(separator: ".")
        let what = underlying.map { "\($0)" } ?? context.debugDescription
        return (path.isEmpty ? "" : path + ": ") + (what.hasSuffix(".") ? String(what.dropLast()) : what)
    }
}
