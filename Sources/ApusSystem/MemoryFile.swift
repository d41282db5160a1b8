internal import CApus
internal import Glibc

extension Descriptor {
    /// A new anonymous file in memory, all zeros; gone with its last descriptor.
    public static func memoryFile(byteCount: UInt64) throws(SystemError) -> Descriptor {
        let fd = try retrying("memfd_create") { Int(capus_memory_file()) }
        let file = Descriptor(owning: Int32(fd))
        _ = try retrying("ftruncate") { Int(ftruncate(file.number, off_t(byteCount))) }
        return file
    }
}

extension Socket {
    /// Two connected UNIX sockets.
    public static func pair() throws(SystemError) -> (Socket, Socket) {
        var numbers: (Int32, Int32) = (-1, -1)
        let kind = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue)
        _ = try retrying("socketpair") {
            unsafe withUnsafeMutablePointer(to: &numbers) { pointer in
                unsafe pointer.withMemoryRebound(to: Int32.self, capacity: 2) {
                    unsafe Int(socketpair(AF_UNIX, kind, 0, $0))
                }
            }
        }
        return (Socket(Descriptor(owning: numbers.0)), Socket(Descriptor(owning: numbers.1)))
    }
}
