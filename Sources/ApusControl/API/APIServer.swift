public import ApusAPI
import Foundation
import HTTPTypes
import Hummingbird
import HummingbirdCore
public import Logging
import NIOCore
public import ServiceLifecycle

/// HTTP/JSON for the command line, the web page and other tools: one router, on a UNIX socket and, when configured, on
/// TCP.
public struct APIServer: Sendable {
    public static let bodyBytesMax = 1 << 20

    let machines: Machines
    let migrations: Migrations
    let info: AgentInfo
    let config: AgentConfig
    let logger: Logger

    public init(machines: Machines, migrations: Migrations, info: AgentInfo, config: AgentConfig, logger: Logger) {
        self.machines = machines
        self.migrations = migrations
        self.info = info
        self.config = config
        self.logger = logger
    }

    /// One service for each address.
    ///
    /// - Throws: `Problem` `address-invalid`, `listen-insecure`.
    public func services() throws(Problem) -> [any Service] {
        var services: [any Service] = [
            application(.unixDomainSocket(path: config.apiSocket), told: config.apiSocket, socket: config.apiSocket)
        ]
        if let listen = config.api.listen {
            let address = try ListenAddress(listen)
            try address.check(insecure: config.link.insecure, purpose: "API", logger: logger)
            services.append(application(.hostname(address.host, port: address.port), told: listen, socket: nil))
        }
        return services
    }

    /// The only place where the API's channels are made: TLS belongs here (`.tls(.http1(), …)`).
    private var server: HTTPServerBuilder { .http1() }

    private func application(_ address: BindAddress, told: String, socket: String?) -> some Service {
        let router = Router(context: APIContext.self)
        router.add(middleware: ProblemMiddleware())
        router.add(middleware: OriginGuard())
        for route in routes { router.on(RouterPath(route.path), method: route.method, use: route.handle) }
        var quiet = logger
        // Hummingbird tells each connection at debug; its own start line repeats ours.
        quiet.logLevel = max(logger.logLevel, .notice)
        return Application(
            router: router, server: server,
            configuration: .init(address: address, serverName: "apus", reuseAddress: true),
            onServerRunning: { [logger] _ in
                if let socket {
                    try? FileManager.default.setAttributes([.posixPermissions: 0o600], ofItemAtPath: socket)
                }
                logger.info("API listens", metadata: ["address": "\(told)"])
            },
            logger: quiet)
    }
}

/// What Hummingbird carries with each request.
struct APIContext: RequestContext {
    var coreContext: CoreRequestContextStorage
    init(source: Source) { coreContext = .init(source: source) }
    var maxUploadSize: Int { APIServer.bodyBytesMax }
    var requestDecoder: JSONDecoder { APICoding.decoder() }
    var responseEncoder: JSONEncoder { APICoding.encoder() }
}

/// `HOST:PORT`, `[IPv6]:PORT`.
public struct ListenAddress: Sendable, Equatable {
    public let host: String
    public let port: Int

    /// - Throws: `Problem` `address-invalid`.
    public init(_ text: String, defaultPort: Int? = nil) throws(Problem) {
        let invalid = Problem(
            "address-invalid", "\"\(text)\" is not an address.", advice: "Write ADDRESS:PORT or [IPV6]:PORT.")
        var host = text
        var port = defaultPort
        let colons = text.count { $0 == ":" }
        if let colon = text.lastIndex(of: ":"), text.hasPrefix("[") ? !text.hasSuffix("]") : colons == 1 {
            guard let number = UInt16(text[text.index(after: colon)...]) else { throw invalid }
            host = String(text[..<colon])
            port = Int(number)
        }
        if host.hasPrefix("["), host.hasSuffix("]") { host = String(host.dropFirst().dropLast()) }
        guard !host.isEmpty, !host.contains("["), let port else { throw invalid }
        self.host = host
        self.port = port
    }

    public var isLoopback: Bool { host == "localhost" || host == "::1" || Self.isLoopback4(host) }

    private static func isLoopback4(_ host: String) -> Bool {
        let parts = host.split(separator: ".", omittingEmptySubsequences: false)
        return parts.count == 4 && parts.allSatisfy { UInt8($0) != nil } && parts[0] == "127"
    }

    /// Without TLS only loopback may be listened on, unless the operator says otherwise.
    ///
    /// - Throws: `Problem` `listen-insecure`.
    public func check(insecure: Bool, purpose: String, logger: Logger) throws(Problem) {
        if isLoopback { return }
        guard insecure else {
            throw Problem(
                "listen-insecure",
                "The \(purpose) would listen on \(host):\(port) without TLS: guest memory and control in the clear, for anybody.",
                advice:
                    "Listen on loopback, or say --insecure (link.insecure: true) on a network that you trust wholly.")
        }
        logger.warning(
            "listens beyond loopback without TLS: anybody who can reach it can read guests and run QEMU here",
            metadata: ["purpose": "\(purpose)", "address": "\(host):\(port)"])
    }
}
