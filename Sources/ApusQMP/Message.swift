import Foundation

/// One line from QEMU, read as far as needed to route it.
///
///     {"QMP": {"version": …, "capabilities": […]}}                 greeting, once
///     {"return": …, "id": ID} | {"error": {…}, "id": ID}           reply, in any order
///     {"event": NAME, "data": …, "timestamp": {…}}                 at any time
enum Message {
    case greeting(QEMUVersion)
    /// The whole line: only the waiting caller knows the type of `return`.
    case reply(id: String)
    case refusal(id: String?, class: String, description: String)
    case event(name: String, data: QMPValue, microseconds: Int64)

    init(_ line: Data) throws(QMPError) {
        let envelope: Envelope
        do {
            envelope = try JSONDecoder().decode(Envelope.self, from: line)
        } catch {
            throw .malformed(what: "message is not understood: \(Self.excerpt(line))")
        }
        if let greeting = envelope.QMP {
            self = .greeting(greeting.version)
        } else if let name = envelope.event {
            let time = envelope.timestamp
            // QEMU writes -1 when it cannot read the clock.
            let microseconds = time.map { $0.seconds &* 1_000_000 &+ $0.microseconds } ?? -1
            self = .event(name: name, data: envelope.data ?? .null, microseconds: microseconds)
        } else if let error = envelope.error {
            self = .refusal(id: envelope.id, class: error.class, description: error.desc)
        } else if let id = envelope.id {
            self = .reply(id: id)
        } else {
            throw .malformed(what: "message is neither greeting, reply nor event: \(Self.excerpt(line))")
        }
    }

    static func excerpt(_ line: Data) -> String {
        let head = String(decoding: line.prefix(QMPLimits.excerptBytesMax), as: UTF8.self)
        return line.count > QMPLimits.excerptBytesMax ? head + "…" : head
    }

    private struct Envelope: Decodable {
        struct Greeting: Decodable { let version: QEMUVersion }
        struct Refusal: Decodable {
            let `class`: String
            let desc: String
        }
        struct Timestamp: Decodable {
            let seconds: Int64
            let microseconds: Int64
        }
        let QMP: Greeting?
        let id: String?
        let error: Refusal?
        let event: String?
        let data: QMPValue?
        let timestamp: Timestamp?
    }
}

/// A command as it goes on the wire.
struct Request: Encodable {
    let execute: String
    let arguments: [String: QMPValue]?
    let id: String
}

/// The part of a reply that its caller decodes.
struct Returned<Reply: Decodable>: Decodable {
    let `return`: Reply
}
