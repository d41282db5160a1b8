internal import CApus
internal import Glibc

/// An open file descriptor; closed when the last reference goes.
///
/// A class, because another thread may have to wake its user: see ``Socket/shutDown()``.
public final class Descriptor: Sendable {
    public let number: Int32
    public init(owning number: Int32) { self.number = number }
    deinit { Glibc.close(number) }

    public enum Access: Sendable { case read, readWrite }

    public static func open(_ path: String, _ access: Access) throws(SystemError) -> Descriptor {
        let flags = (access == .read ? O_RDONLY : O_RDWR) | O_CLOEXEC
        let fd = try retrying("open") { Int(unsafe path.withCString { unsafe capus_open($0, flags, 0) }) }
        return Descriptor(owning: Int32(fd))
    }

    /// The file's size in bytes.
    public func byteCount() throws(SystemError) -> UInt64 {
        var info = stat()
        _ = try retrying("fstat") { Int(unsafe fstat(number, &info)) }
        return UInt64(info.st_size)
    }
}
