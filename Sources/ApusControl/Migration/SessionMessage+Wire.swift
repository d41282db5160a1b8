//  The wire form of a control message: one JSON object {"job": …, "kind": …, "body": …}.

import ApusFlow

extension SessionEnvelope: Codable {
    private enum Keys: String, CodingKey { case job, kind, body }

    public init(from decoder: any Decoder) throws {
        let box = try decoder.container(keyedBy: Keys.self)
        job = try box.decode(String.self, forKey: .job)
        guard !job.isEmpty, job.utf8.count <= SessionLimits.nameBytesMax else {
            throw DecodingError.dataCorruptedError(forKey: .job, in: box, debugDescription: "not a job id")
        }
        func body<Body: Decodable>(_ type: Body.Type = Body.self) throws -> Body {
            try box.decode(Body.self, forKey: .body)
        }
        message =
            switch try box.decode(SessionMessage.Kind.self, forKey: .kind) {
            case .open: .open(try body())
            // An agent that knows no terms sends none.
            case .ready: .ready(try box.decodeIfPresent(TransferTerms.self, forKey: .body) ?? TransferTerms())
            case .refused: .refused(try body())
            case .prepared: .prepared(try body())
            case .commit: .commit
            case .abort: .abort(try body())
            case .running: .running(try body())
            case .verdictQuery: .verdictQuery
            case .heartbeat: .heartbeat(try body())
            case .failed: .failed(try body())
            case .aborted: .aborted
            case .resume: .resume
            case .resumed: .resumed(try body())
            case .cutOff: .cutOff
            case .sourceLost: .sourceLost(try body())
            }
        if case .open(let offer) = message, let reason = offer.invalid() {
            throw DecodingError.dataCorruptedError(forKey: .body, in: box, debugDescription: reason)
        }
        if case .resumed(let point) = message, let reason = point.invalid() {
            throw DecodingError.dataCorruptedError(forKey: .body, in: box, debugDescription: reason)
        }
    }

    public func encode(to encoder: any Encoder) throws {
        var box = encoder.container(keyedBy: Keys.self)
        try box.encode(job, forKey: .job)
        try box.encode(message.kind, forKey: .kind)
        switch message {
        case .open(let body): try box.encode(body, forKey: .body)
        case .refused(let body), .abort(let body), .sourceLost(let body): try box.encode(body, forKey: .body)
        case .prepared(let body): try box.encode(body, forKey: .body)
        case .running(let body): try box.encode(body, forKey: .body)
        case .heartbeat(let body): try box.encode(body, forKey: .body)
        case .failed(let body): try box.encode(body, forKey: .body)
        case .ready(let body): try box.encode(body, forKey: .body)
        case .resumed(let body): try box.encode(body, forKey: .body)
        case .commit, .verdictQuery, .aborted, .resume, .cutOff: break
        }
    }
}
