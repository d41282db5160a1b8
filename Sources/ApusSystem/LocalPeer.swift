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

extension LocalPeer {
    /// Connects to the UNIX socket at `path` without waiting.
    ///
    /// - Throws: `SystemError`; `EAGAIN` when the listener's queue is full, `ENAMETOOLONG` above 107 bytes.
    public static func connect(path: String) throws(SystemError) -> LocalPeer {
        var peer = capus_peer()
        var path = path
        // SAFETY: the bytes live for the call; the C side copies them and bounds the length.
        let result = path.withUTF8 { bytes in
            unsafe bytes.withMemoryRebound(to: CChar.self) { text in
                unsafe capus_unix_connect(text.baseAddress, text.count, &peer)
            }
        }
        guard result >= 0 else { throw SystemError("connect", code: -result) }
        return LocalPeer(descriptor: result, pid: peer.pid, uid: peer.uid)
    }

    /// Closes a descriptor that nobody took over.
    public func close() { _ = Glibc.close(descriptor) }
}
