/// Everything that can go wrong between us and a QEMU monitor.
public enum QMPError: Error, Sendable, Equatable {
    /// The socket could not be connected; `reason` is the kernel's text.
    case connectFailed(path: String, reason: String)
    /// The connection ended (QEMU quit, or `close()` was called); every pending command gets this.
    case closed
    /// No reply within the time given, in milliseconds. The command may still take effect.
    case timedOut(command: String, ms: Int)
    /// QEMU answered with an error.
    case refused(command: String, class: String, description: String)
    /// The peer sent something that is not QMP, or a reply of another shape; `what` says which and how it began.
    case malformed(what: String)
    /// More commands wait for a reply than `QMPLimits.commandsPendingMax`.
    case tooManyPending(limit: Int)
}

extension QMPError: CustomStringConvertible {
    public var description: String {
        switch self {
        case .connectFailed(let path, let reason): "QMP socket \(path) cannot be connected: \(reason)"
        case .closed: "The QMP connection is closed"
        case .timedOut(let command, let ms): "QEMU did not answer \(command) within \(ms) ms"
        case .refused(let command, _, let text): "QEMU refused \(command): \(text)"
        case .malformed(let what): "Not QMP: \(what)"
        case .tooManyPending(let limit): "More than \(limit) QMP commands wait for a reply"
        }
    }
}
