internal import CApus
internal import Glibc

/// A system call that failed: which one, and the kernel's reason.
public struct SystemError: Error, Equatable, Sendable, CustomStringConvertible {
    public let call: String
    public let code: Int32

    public init(_ call: String, code: Int32) {
        self.call = call
        self.code = code
    }

    /// The error of the call that has just returned. The only place that reads `errno`.
    static func last(_ call: StaticString) -> SystemError { SystemError("\(call)", code: errno) }

    /// The kernel's text alone, for example `No such file or directory`.
    public var reason: String {
        // The C library returns NULL or a static, NUL-terminated string.
        guard let text = unsafe capus_errno_text(code) else { return "error \(code)" }
        return unsafe String(cString: text)
    }
    public var description: String { "\(call): \(reason)" }

    public var isTimeout: Bool { code == EAGAIN || code == EWOULDBLOCK || code == ETIMEDOUT }
    public var isBrokenConnection: Bool { [ECONNRESET, EPIPE, ECONNABORTED].contains(code) }
    /// No descriptors or memory at the moment.
    public var isExhaustion: Bool { [EMFILE, ENFILE, ENOBUFS, ENOMEM].contains(code) }
    /// A connection that ended in the middle of something.
    public static let connectionReset = SystemError("recv", code: ECONNRESET)
}

/// Runs a system call again while a signal interrupts it.
@inline(__always)
func retrying(_ call: StaticString, _ body: () -> Int) throws(SystemError) -> Int {
    while true {
        let result = body()
        if result >= 0 { return result }
        if errno != EINTR { throw SystemError.last(call) }
    }
}
