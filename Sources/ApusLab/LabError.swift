/// What can go wrong in the laboratory; each case carries what a reader needs to find the cause.
public enum LabError: Error, Sendable, Equatable {
    case commandFailed(command: String, status: String, output: String)
    case timedOut(what: String, seconds: Double)
    /// A process that should have gone on has ended; `log` is the end of what it printed.
    case processEnded(name: String, status: String, log: String)
    case guestMissing(folder: String)
    /// The guest says that a page of its memory is wrong, or that its program failed.
    case guestWrong(lines: [String])
    case migrationFailed(peer: String, reason: String)
    case notEnough(what: String)
}

extension LabError: CustomStringConvertible {
    public var description: String {
        switch self {
        case .commandFailed(let command, let status, let output): "\(command) failed (\(status)): \(output)"
        case .timedOut(let what, let seconds): "Waited \(seconds) s for \(what)"
        case .processEnded(let name, let status, let log): "\(name) ended (\(status)): \(log)"
        case .guestMissing(let folder): "No guest image in \(folder); ./dev setup builds it"
        case .guestWrong(let lines): "The guest reports wrong memory: \(lines.joined(separator: " | "))"
        case .migrationFailed(let peer, let reason): "Migration by \(peer) failed: \(reason)"
        case .notEnough(let what): "Not enough \(what)"
        }
    }
}
