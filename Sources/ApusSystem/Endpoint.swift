internal import CApus
internal import Glibc

/// Where a stream socket listens or connects to.
public enum Endpoint: Hashable, Sendable, CustomStringConvertible {
    /// A numeric IPv4 or IPv6 address, or a host name, and a port.
    case tcp(host: String, port: UInt16)
    case unix(path: String)

    /// Reads `HOST:PORT`, `[IPV6]:PORT`, `HOST` (with the default port), or `unix:PATH`; nil when it is none of these.
    public init?(_ text: String, defaultPort: UInt16) {
        if text.hasPrefix("unix:") {
            let path = String(text.dropFirst(5))
            guard !path.isEmpty, path.utf8.count < 108 else { return nil }
            self = .unix(path: path)
            return
        }
        if text.hasPrefix("[") {
            guard let end = text.firstIndex(of: "]") else { return nil }
            let host = String(text[text.index(after: text.startIndex)..<end])
            let rest = text[text.index(after: end)...]
            if rest.isEmpty {
                self = .tcp(host: host, port: defaultPort)
            } else {
                guard rest.hasPrefix(":"), let port = UInt16(rest.dropFirst()) else { return nil }
                self = .tcp(host: host, port: port)
            }
            return
        }
        let parts = text.split(separator: ":", omittingEmptySubsequences: false)
        guard let host = parts.first, !host.isEmpty, parts.count <= 2 else { return nil }
        if parts.count == 1 {
            self = .tcp(host: String(host), port: defaultPort)
        } else {
            guard let port = UInt16(parts[1]) else { return nil }
            self = .tcp(host: String(host), port: port)
        }
    }

    public var description: String {
        switch self {
        case .tcp(let host, let port): host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)"
        case .unix(let path): "unix:\(path)"
        }
    }

    /// True for UNIX sockets and the loopback addresses: nobody outside this machine can reach it.
    public var isLocal: Bool {
        switch self {
        case .unix: true
        case .tcp(let host, _): host == "localhost" || host == "::1" || host.hasPrefix("127.")
        }
    }
}

extension Socket {
    /// Connects within `timeoutMs`. A name that does not resolve is reported as `getaddrinfo` with EINVAL.
    public static func connect(to endpoint: Endpoint, timeoutMs: Double) throws(SystemError) -> Socket {
        let address = try SocketAddress(endpoint, passive: false)
        let descriptor = try address.makeSocket()
        let socket = Socket(descriptor)
        // SO_SNDTIMEO also bounds connect().
        try socket.setTimeout(receiveMs: 0, sendMs: timeoutMs)
        do throws(SystemError) {
            _ = try retrying("connect") {
                unsafe address.withPointer { unsafe Glibc.connect(descriptor.number, $0, $1) }
            }
        } catch {
            // A timed-out connect reports EINPROGRESS; say what it means.
            throw error.code == EINPROGRESS ? SystemError("connect", code: ETIMEDOUT) : error
        }
        try socket.setTimeout(receiveMs: 0, sendMs: 0)
        return socket
    }
}

extension Socket {
    /// The peer's numeric address, without its port; nil for a UNIX socket.
    public var peerHost: String? {
        var storage = sockaddr_storage()
        var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
        var text = [CChar](repeating: 0, count: 64)
        let result = unsafe withUnsafeMutablePointer(to: &storage) { pointer in
            unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { address in
                guard unsafe getpeername(descriptor.number, address, &length) == 0 else { return Int32(-1) }
                return unsafe getnameinfo(address, length, &text, socklen_t(text.count), nil, 0, NI_NUMERICHOST)
            }
        }
        guard result == 0, storage.ss_family != sa_family_t(AF_UNIX) else { return nil }
        return String(decoding: text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }
}

/// A listening socket.
public final class Listener: Sendable {
    private let descriptor: Descriptor
    /// The address really bound: the port is filled in when 0 was asked for.
    public let endpoint: Endpoint

    /// A UNIX path that exists is replaced.
    public init(_ endpoint: Endpoint, backlog: Int32 = 64) throws(SystemError) {
        let address = try SocketAddress(endpoint, passive: true)
        let descriptor = try address.makeSocket()
        switch endpoint {
        case .unix(let path): unsafe unlink(path)
        case .tcp:
            var one: Int32 = 1
            _ = unsafe setsockopt(descriptor.number, SOL_SOCKET, SO_REUSEADDR, &one, 4)
        }
        _ = try retrying("bind") { unsafe address.withPointer { unsafe Glibc.bind(descriptor.number, $0, $1) } }
        _ = try retrying("listen") { Int(Glibc.listen(descriptor.number, backlog)) }
        self.descriptor = descriptor
        if case .tcp(let host, 0) = endpoint {
            self.endpoint = .tcp(host: host, port: SocketAddress.localPort(descriptor))
        } else {
            self.endpoint = endpoint
        }
    }

    /// Blocks until somebody connects; nil once the listener was shut down or `timeoutMs` passed.
    public func accept(timeoutMs: Int? = nil) throws(SystemError) -> Socket? {
        if let timeoutMs {
            var entry = pollfd(fd: descriptor.number, events: Int16(POLLIN), revents: 0)
            guard try retrying("poll", { Int(unsafe poll(&entry, 1, Int32(timeoutMs))) }) > 0 else { return nil }
        }
        do throws(SystemError) {
            let fd = try retrying("accept") {
                Int(capus_accept(descriptor.number))
            }
            return Socket(Descriptor(owning: Int32(fd)))
        } catch {
            if error.code == EINVAL || error.code == EBADF { return nil }
            throw error
        }
    }

    /// Wakes a blocked ``accept(timeoutMs:)``; nobody can connect any more. A UNIX path is removed.
    public func shutDown() {
        Glibc.shutdown(descriptor.number, Int32(SHUT_RDWR))
        if case .unix(let path) = endpoint { unsafe unlink(path) }
    }
}

/// A resolved address in the kernel's own layout.
private struct SocketAddress {
    private var storage = sockaddr_storage()
    private var length: socklen_t = 0
    private var family: Int32 = 0

    init(_ endpoint: Endpoint, passive: Bool) throws(SystemError) {
        switch endpoint {
        case .unix(let path):
            family = AF_UNIX
            var address = sockaddr_un()
            address.sun_family = sa_family_t(AF_UNIX)
            let bytes = Array(path.utf8)
            guard bytes.count < 108 else { throw SystemError("bind", code: ENAMETOOLONG) }
            unsafe withUnsafeMutableBytes(of: &address.sun_path) { unsafe $0.copyBytes(from: bytes) }
            length = socklen_t(MemoryLayout<sockaddr_un>.size)
            unsafe withUnsafeMutableBytes(of: &storage) { target in
                unsafe withUnsafeBytes(of: &address) { unsafe target.copyMemory(from: $0) }
            }
        case .tcp(let host, let port):
            var hints = unsafe addrinfo()
            unsafe hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
            unsafe hints.ai_flags = passive ? AI_PASSIVE : 0
            var list: UnsafeMutablePointer<addrinfo>?
            guard unsafe getaddrinfo(host, String(port), &hints, &list) == 0, let first = unsafe list else {
                throw SystemError("getaddrinfo", code: EINVAL)
            }
            defer { unsafe freeaddrinfo(list) }
            family = unsafe first.pointee.ai_family
            length = unsafe first.pointee.ai_addrlen
            unsafe withUnsafeMutableBytes(of: &storage) { target in
                unsafe target.copyMemory(
                    from: UnsafeRawBufferPointer(start: first.pointee.ai_addr, count: Int(length)))
            }
        }
    }

    func makeSocket() throws(SystemError) -> Descriptor {
        let kind = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue)
        return Descriptor(owning: Int32(try retrying("socket") { Int(Glibc.socket(family, kind, 0)) }))
    }

    func withPointer(_ body: (UnsafePointer<sockaddr>, socklen_t) -> Int32) -> Int {
        unsafe withUnsafePointer(to: storage) { pointer in
            unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { unsafe Int(body($0, length)) }
        }
    }

    static func localPort(_ descriptor: Descriptor) -> UInt16 {
        var storage = sockaddr_storage()
        var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
        let result = unsafe withUnsafeMutablePointer(to: &storage) { pointer in
            unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                unsafe getsockname(descriptor.number, $0, &length)
            }
        }
        guard result == 0 else { return 0 }
        // Port in network order at the same place for IPv4 and IPv6.
        return unsafe withUnsafeBytes(of: &storage) { UInt16(unsafe $0[2]) << 8 | UInt16(unsafe $0[3]) }
    }
}
