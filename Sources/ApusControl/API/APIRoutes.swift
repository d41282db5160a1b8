import ApusAPI
import Foundation
import HTTPTypes
import Hummingbird
import NIOCore

/// One operation of the API; `Docs/api/openapi.yaml` describes them all, and a test holds both together.
struct APIRoute: Sendable {
    let method: HTTPRequest.Method
    let path: String
    let handle: @Sendable (Request, APIContext) async throws -> Response

    init(
        _ method: HTTPRequest.Method, _ path: String,
        _ handle: @escaping @Sendable (Request, APIContext) async throws -> Response
    ) {
        self.method = method
        self.path = path
        self.handle = handle
    }
}

extension APIServer {
    /// `METHOD path` of each operation, as the OpenAPI document writes them.
    public var operations: [String] { routes.map { "\($0.method.rawValue) \($0.path)" } }

    var routes: [APIRoute] { machineRoutes + migrationRoutes + storeRoutes }

    private var storeRoutes: [APIRoute] {
        [
            APIRoute(.get, "/v1/store") { _, _ in try .json(await migrations.showStore()) },
            APIRoute(.post, "/v1/store/gc") { _, _ in try .json(await migrations.collectStore()) },
            APIRoute(.delete, "/v1/store/images/{name}") { request, context in
                let wipes = request.uri.queryParameters["wipe"].map { $0 == "true" } ?? false
                return try .json(
                    await migrations.dropImage(of: context.parameters.require("name"), wipes: wipes))
            },
        ]
    }

    private var machineRoutes: [APIRoute] {
        [
            APIRoute(.get, "/v1/agent") { _, _ in try .json(info) },
            APIRoute(.get, "/v1/vms") { _, _ in try .json(await machines.list()) },
            APIRoute(.post, "/v1/vms") { request, context in
                try .json(await machines.run(request.json(RunRequest.self, context)), status: .created)
            },
            APIRoute(.post, "/v1/vms/adopt") { request, context in
                try .json(await machines.adopt(request.json(AdoptRequest.self, context)), status: .created)
            },
            APIRoute(.get, "/v1/vms/{name}") { _, context in
                try .json(await machines.show(context.parameters.require("name")))
            },
            APIRoute(.delete, "/v1/vms/{name}") { request, context in
                let force = request.uri.queryParameters["force"].map { $0 == "true" } ?? false
                return try .json(await machines.stop(context.parameters.require("name"), force: force))
            },
        ]
    }

    private var migrationRoutes: [APIRoute] {
        [
            APIRoute(.get, "/v1/migrations") { _, _ in try .json(await migrations.list()) },
            APIRoute(.post, "/v1/migrations") { request, context in
                try .json(await migrations.start(request.json(MigrateRequest.self, context)), status: .created)
            },
            APIRoute(.post, "/v1/plans") { request, context in
                try .json(await migrations.plan(request.json(PlanRequest.self, context)))
            },
            APIRoute(.get, "/v1/plans/accuracy") { _, _ in try .json(await migrations.accuracy()) },
            APIRoute(.get, "/v1/migrations/{id}") { _, context in
                try .json(await migrations.status(context.parameters.require("id")))
            },
            APIRoute(.post, "/v1/migrations/{id}/abort") { _, context in
                try .json(await migrations.abort(context.parameters.require("id")))
            },
            APIRoute(.post, "/v1/migrations/{id}/postcopy") { _, context in
                try .json(await migrations.moveNow(context.parameters.require("id")))
            },
            APIRoute(.post, "/v1/migrations/{id}/resolve") { request, context in
                let decision = try await request.json(ResolveRequest.self, context)
                return try .json(await migrations.resolve(context.parameters.require("id"), commit: decision.commit))
            },
            APIRoute(.get, "/v1/migrations/{id}/events") { _, context in
                .events(try await migrations.updates(of: context.parameters.require("id")))
            },
        ]
    }
}

extension Request {
    fileprivate func json<T: Decodable>(_ type: T.Type, _ context: APIContext) async throws -> T {
        let body = try await body.collect(upTo: context.maxUploadSize)
        do {
            return try context.requestDecoder.decode(type, from: Data(body.readableBytesView))
        } catch let error as DecodingError {
            throw Problem("request-malformed", "The request is not a \(type): \(error.told).")
        }
    }
}

extension DecodingError {
    /// What is wrong, where, in a few words.
    var told: String {
        func place(_ context: Context) -> String {
            let path = context.codingPath.map(\.stringValue).joined(separator: ".")
            return path.isEmpty ? "" : " in \(path)"
        }
        switch self {
        case .keyNotFound(let key, let context): return "\(key.stringValue) is missing\(place(context))"
        case .typeMismatch(let type, let context): return "not a \(type)\(place(context))"
        case .valueNotFound(_, let context): return "a value is missing\(place(context))"
        case .dataCorrupted(let context): return "\(context.debugDescription)\(place(context))"
        @unknown default: return "\(self)"
        }
    }
}

extension Response {
    static func json(_ value: some Encodable, status: HTTPResponse.Status = .ok) throws -> Response {
        var body = ByteBuffer(bytes: try APICoding.encoder().encode(value))
        body.writeInteger(UInt8(ascii: "\n"))
        return Response(status: status, headers: [.contentType: "application/json"], body: .init(byteBuffer: body))
    }

    /// Server-sent events: one `data:` line of JSON for each state; the stream ends after a final one.
    static func events(_ updates: AsyncStream<JobStatus>) -> Response {
        let body = ResponseBody { writer in
            for await status in updates {
                var line = ByteBuffer(string: "data: ")
                line.writeBytes(try APICoding.encoder().encode(status))
                line.writeString("\n\n")
                try await writer.write(line)
            }
            try await writer.finish(nil)
        }
        return Response(
            status: .ok, headers: [.contentType: "text/event-stream", .cacheControl: "no-store"], body: body)
    }
}
