internal import CApus
internal import Glibc

/// A connected UNIX stream socket and the process that listens on its other end.
public struct LocalPeer: Sendable, Equatable {
    /// Non-blocking, close-on-exec; whoever receives this value closes it.
    public let descriptor: Int32
    /// The process that called `listen`, from `SO_PEERCRED`.
    public let pid: Int32
    public let uid: UInt32
}

/// What the kernel said when a process or local-socket call failed.
public struct SystemFailure: Error, Sendable, Equatable, CustomStringConvertible {
    public let call: String
    public let errno: Int32

    public init(call: String, errno: Int32) {
        self.call = call
        self.errno = errno
    }

    /// The kernel's text alone, for example `No such file or directory`.
    public var reason: String {
        // SAFETY: the C library returns NULL or a static, NUL-terminated string.
        guard let text = unsafe capus_errno_text(errno) else { return "error \(errno)" }
        return unsafe String(cString: text)
    }
    public var description: String { "\(call): \(reason)" }
}

extension LocalPeer {
    /// Connects to the UNIX socket at `path` without waiting.
    ///
    /// - Throws: `SystemFailure`; `EAGAIN` when the listener's queue is full, `ENAMETOOLONG` above 107 bytes.
    public static func connect(path: String) throws(SystemFailure) -> LocalPeer {
        var peer = capus_peer()
        var path = path
        // SAFETY: the bytes live for the call; the C side copies them and bounds the length.
        let result = path.withUTF8 { bytes in
            unsafe bytes.withMemoryRebound(to: CChar.self) { text in
                unsafe capus_unix_connect(text.baseAddress, text.count, &peer)
            }
        }
        guard result >= 0 else { throw SystemFailure(call: "connect", errno: -result) }
        return LocalPeer(descriptor: result, pid: peer.pid, uid: peer.uid)
    }

    /// Closes a descriptor that nobody took over.
    public func close() { _ = Glibc.close(descriptor) }
}
