import ApusAPI
import HTTPTypes
import Hummingbird
import Logging
import NIOCore

/// Every error leaves as a Problem with a fitting status.
struct ProblemMiddleware: RouterMiddleware {
    typealias Context = APIContext

    func handle(
        _ request: Request, context: Context, next: @concurrent (Request, Context) async throws -> Response
    ) async throws -> Response {
        do {
            return try await next(request, context)
        } catch let problem as Problem {
            return try .json(problem, status: problem.status)
        } catch let error as HTTPError {
            return try .json(Self.problem(error, request), status: error.status)
        } catch is NIOTooManyBytesError {
            let problem = Problem("request-too-large", "The request has more than \(APIServer.bodyBytesMax) bytes.")
            return try .json(problem, status: problem.status)
        } catch is CancellationError {
            let problem = Problem("agent-stopping", "The agent is stopping.", advice: "Ask again when it runs.")
            return try .json(problem, status: problem.status)
        } catch {
            context.logger.error("request failed", metadata: ["path": "\(request.uri.path)", "error": "\(error)"])
            let problem = Problem("internal", "\(error)")
            return try .json(problem, status: problem.status)
        }
    }

    private static func problem(_ error: HTTPError, _ request: Request) -> Problem {
        switch error.status {
        case .notFound:
            Problem(
                "route-unknown", "There is no \(request.method.rawValue) \(request.uri.path).",
                advice: "See Docs/api/openapi.yaml.")
        case .contentTooLarge:
            Problem("request-too-large", "The request has more than \(APIServer.bodyBytesMax) bytes.")
        default: Problem("request-malformed", error.body ?? "\(error.status)")
        }
    }
}

/// A web page of somebody else's, open in a browser on this host, must not command the agent: browsers send an origin.
struct OriginGuard: RouterMiddleware {
    typealias Context = APIContext

    func handle(
        _ request: Request, context: Context, next: @concurrent (Request, Context) async throws -> Response
    ) async throws -> Response {
        if let origin = request.headers[.origin] {
            let here = request.head.authority.map { ["http://\($0)", "https://\($0)"] } ?? []
            guard here.contains(origin) else {
                throw Problem("origin-refused", "A page of \(origin) asked; only the agent's own pages may.")
            }
        }
        return try await next(request, context)
    }
}

extension Problem {
    /// 404 for names that do not exist, 409 for what the present state forbids, 4xx for what was asked wrongly, 422 for
    /// what this host cannot do, 5xx for what broke.
    var status: HTTPResponse.Status {
        switch code {
        case "vm-unknown", "job-unknown", "host-unknown", "route-unknown", "image-unknown": .notFound
        case "vm-exists", "vm-busy", "vm-not-running", "vm-still-running", "vm-unresponsive", "already-managed",
            "store-off", "job-final", "job-committed", "job-not-in-doubt", "job-incoming", "postcopy-not-possible",
            "qmp-busy":
            .conflict
        case "request-malformed", "name-invalid", "command-empty", "command-malformed", "memory-malformed",
            "memory-unknown", "address-invalid":
            .badRequest
        case "request-too-large": .contentTooLarge
        case "origin-refused": .forbidden
        case "not-built": .notImplemented
        case "agent-stopping": .serviceUnavailable
        case "internal", "store-failed", "store-unusable", "store-corrupt", "store-newer", "directory-unusable":
            .internalServerError
        default: .unprocessableContent
        }
    }
}
