import ApusAPI
import AsyncHTTPClient
import Foundation
import NIOCore
import NIOHTTP1

/// No agent answers at the socket.
struct AgentUnreachable: Error {
    let socket: String
    let reason: String

    var problem: Problem {
        Problem(
            "agent-unreachable", "No agent answers at \(socket): \(reason).",
            advice: "Start it with `apus agent`, or name its socket with --agent PATH or APUS_AGENT.")
    }
}

/// The API over the agent's UNIX socket.
struct AgentClient: Sendable {
    let socket: String
    private let http: HTTPClient

    /// Longest time a request may take; stopping a VM waits for its guest.
    static let requestTimeout: TimeAmount = .seconds(120)
    static let replyBytesMax = 64 << 20

    init(socket: String) {
        self.socket = socket
        var configuration = HTTPClient.Configuration()
        configuration.connectionPool.retryConnectionEstablishment = false
        configuration.timeout.connect = .seconds(3)
        http = HTTPClient(eventLoopGroupProvider: .singleton, configuration: configuration)
    }

    func shutdown() async { try? await http.shutdown() }

    func get<T: Decodable>(_ path: String, as type: T.Type = T.self) async throws -> T { try await send(.GET, path) }
    func delete<T: Decodable>(_ path: String, as type: T.Type = T.self) async throws -> T {
        try await send(.DELETE, path)
    }
    func post<T: Decodable>(_ path: String, as type: T.Type = T.self) async throws -> T { try await send(.POST, path) }
    func post<T: Decodable>(_ path: String, _ body: some Encodable, as type: T.Type = T.self) async throws -> T {
        try await send(.POST, path, APICoding.encoder().encode(body))
    }

    /// Every state of a job from now on; ends after a final one, or when the agent goes.
    func events(job id: String) async throws -> AsyncThrowingStream<JobStatus, any Error> {
        let response = try await execute(
            request(.GET, "/v1/migrations/\(Self.escaped(id))/events", nil), deadline: .distantFuture)
        guard response.status == .ok else { throw try await problem(in: response) }
        return AsyncThrowingStream { continuation in
            let reading = Task {
                var parser = EventParser()
                do {
                    for try await chunk in response.body {
                        for data in parser.feed(chunk.readableBytesView) {
                            continuation.yield(try APICoding.decoder().decode(JobStatus.self, from: data))
                        }
                    }
                    continuation.finish()
                } catch {
                    continuation.finish(throwing: error)
                }
            }
            continuation.onTermination = { _ in reading.cancel() }
        }
    }

    /// One path segment.
    static func escaped(_ name: String) -> String {
        var allowed = CharacterSet.urlPathAllowed
        allowed.remove(charactersIn: "/")
        return name.addingPercentEncoding(withAllowedCharacters: allowed) ?? name
    }

    private func send<T: Decodable>(_ method: HTTPMethod, _ path: String, _ body: Data? = nil) async throws -> T {
        let response = try await execute(request(method, path, body), deadline: .now() + Self.requestTimeout)
        guard (200..<300).contains(response.status.code) else { throw try await problem(in: response) }
        let bytes = try await response.body.collect(upTo: Self.replyBytesMax)
        return try APICoding.decoder().decode(T.self, from: Data(bytes.readableBytesView))
    }

    private func request(_ method: HTTPMethod, _ path: String, _ body: Data?) throws -> HTTPClientRequest {
        guard let url = URL(httpURLWithSocketPath: socket, uri: path) else {
            throw AgentUnreachable(socket: socket, reason: "it is no path of a socket")
        }
        var request = HTTPClientRequest(url: url.absoluteString)
        request.method = method
        // The default would be the percent-encoded path of the socket.
        request.headers.add(name: "host", value: "localhost")
        if let body {
            request.headers.add(name: "content-type", value: "application/json")
            request.body = .bytes(body)
        }
        return request
    }

    private func execute(_ request: HTTPClientRequest, deadline: NIODeadline) async throws -> HTTPClientResponse {
        do {
            return try await http.execute(request, deadline: deadline)
        } catch is CancellationError {
            throw CancellationError()
        } catch {
            let there = FileManager.default.fileExists(atPath: socket)
            throw AgentUnreachable(socket: socket, reason: there ? "\(error)" : "there is no such socket")
        }
    }

    private func problem(in response: HTTPClientResponse) async throws -> any Error {
        let bytes = try await response.body.collect(upTo: Self.replyBytesMax)
        if let problem = try? APICoding.decoder().decode(Problem.self, from: Data(bytes.readableBytesView)) {
            return problem
        }
        return Problem("agent-strange", "The agent answered HTTP \(response.status.code) without a reason.")
    }
}

/// Server-sent events, as far as we use them: `data:` lines, an empty line ends an event.
struct EventParser {
    private var line: [UInt8] = []
    private var event: [UInt8] = []

    /// The events that `bytes` complete.
    mutating func feed(_ bytes: some Sequence<UInt8>) -> [Data] {
        var events: [Data] = []
        for byte in bytes {
            guard byte == UInt8(ascii: "\n") else {
                line.append(byte)
                continue
            }
            if line.last == UInt8(ascii: "\r") { line.removeLast() }
            if line.isEmpty {
                if !event.isEmpty { events.append(Data(event)) }
                event = []
            } else if line.starts(with: "data:".utf8) {
                event += line.dropFirst("data:".utf8.count).drop { $0 == UInt8(ascii: " ") }
            }
            line = []
        }
        return events
    }
}
