internal import CApus
internal import Glibc

/// Small files of the kernel's (`/proc`, `/sys`), whose size is only known by reading them.
public enum ProcFile {
    /// The largest file read; a QEMU's `maps` is some 100 kB.
    public static let bytesMax = 16 << 20

    /// - Throws: `SystemError`; `EFBIG` above `bytesMax`.
    public static func bytes(_ path: String) throws(SystemError) -> [UInt8] {
        let descriptor = unsafe open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { throw SystemError("open \(path)", code: errno) }
        defer { _ = close(descriptor) }
        var all: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 64 << 10)
        while true {
            // SAFETY: the kernel writes at most `count` bytes into the array.
            let count = unsafe chunk.withUnsafeMutableBytes { unsafe Glibc.read(descriptor, $0.baseAddress, $0.count) }
            if count < 0 {
                if errno == EINTR { continue }
                throw SystemError("read \(path)", code: errno)
            }
            if count == 0 { return all }
            all += chunk[..<count]
            guard all.count <= bytesMax else { throw SystemError("read \(path)", code: EFBIG) }
        }
    }

    public static func read(_ path: String) throws(SystemError) -> String {
        String(decoding: try bytes(path), as: UTF8.self)
    }

    /// The value of `NAME:\tVALUE` in a `status`, `smaps` or `fdinfo` file; nil: there is no such line.
    public static func field(_ name: String, of text: String) -> Substring? {
        for line in text.split(separator: "\n") where line.hasPrefix("\(name):") {
            return line.dropFirst(name.utf8.count + 1).drop { $0 == " " || $0 == "\t" }
        }
        return nil
    }

    /// The entries of a folder whose names are numbers, in the kernel's order: threads, descriptors.
    public static func numbers(in path: String) throws(SystemError) -> [Int32] {
        try Folder.names(in: path).compactMap { Int32($0) }
    }

    /// Where a link of the kernel's leads, at most 255 bytes of it; nil: it cannot be read.
    public static func link(_ path: String) -> String? {
        var target = [UInt8](repeating: 0, count: 255)
        // SAFETY: the kernel writes at most `count` bytes into the array.
        let count = unsafe target.withUnsafeMutableBytes { bytes in
            unsafe bytes.withMemoryRebound(to: CChar.self) { text in
                unsafe text.baseAddress.map { unsafe readlink(path, $0, text.count) } ?? -1
            }
        }
        return count < 0 ? nil : String(decoding: target[..<count], as: UTF8.self)
    }

    /// Field 3 of `/proc/PID/stat` says that only the exit status is left.
    static func isZombie(stat text: String) -> Bool {
        fields(stat: text).first.map { $0 == "Z" || $0 == "X" } ?? false
    }

    /// Field 9, the flags: PF_IO_WORKER, PF_USER_WORKER or PF_KTHREAD; it never runs the process's own code.
    static func isKernelThread(stat text: String) -> Bool {
        let fields = fields(stat: text)
        guard fields.count > 6, let flags = UInt32(fields[6]) else { return false }
        return flags & (0x10 | 0x4000 | 0x20_0000) != 0
    }

    /// Field 22 of `/proc/PID/stat`: clock ticks since boot.
    public static func startTicks(stat text: String) -> UInt64? {
        let fields = fields(stat: text)
        return fields.count > 19 ? UInt64(fields[19]) : nil
    }

    /// From field 3 on. The name in field 2 may hold anything, so counting starts after its last `)`.
    private static func fields(stat text: String) -> [Substring] {
        guard let end = text.lastIndex(of: ")") else { return [] }
        return text[text.index(after: end)...].split(separator: " ")
    }
}

/// Which file a path leads to, links followed.
public struct FileIdentity: Sendable, Hashable {
    public let deviceMajor: UInt64
    public let deviceMinor: UInt64
    public let inode: UInt64
    public let size: UInt64

    public static func of(path: String) throws(SystemError) -> FileIdentity {
        var file = capus_file()
        // SAFETY: the path is NUL-terminated for the call, the structure outlives it.
        let error = unsafe capus_stat(path, &file)
        guard error == 0 else { throw SystemError("stat \(path)", code: error) }
        return FileIdentity(
            deviceMajor: file.device_major, deviceMinor: file.device_minor, inode: file.inode, size: file.size)
    }
}

public enum FileSystemRoom {
    /// Bytes that can still be written to the file system of `path`.
    public static func available(path: String) throws(SystemError) -> UInt64 {
        var bytes: UInt64 = 0
        // SAFETY: the path is NUL-terminated for the call, the variable outlives it.
        let error = unsafe capus_room(path, &bytes)
        guard error == 0 else { throw SystemError("statvfs \(path)", code: error) }
        return bytes
    }
}

/// A file locked for this process; the lock ends with this value, or with the process.
public final class FileLock: Sendable {
    private let descriptor: Int32

    /// - Throws: `SystemError`; `EWOULDBLOCK` when another process has it.
    public init(path: String) throws(SystemError) {
        // SAFETY: the path is NUL-terminated for the call.
        let descriptor = unsafe capus_lock_file(path)
        guard descriptor >= 0 else { throw SystemError("lock \(path)", code: -descriptor) }
        self.descriptor = descriptor
    }

    deinit { capus_unlock_file(descriptor) }
}

public enum FileSystem {
    /// True when the file lives in memory (tmpfs), with pages of 4096 bytes. False also when it cannot be told.
    public static func isMemory(_ path: String) -> Bool {
        // SAFETY: the path is NUL-terminated for the call.
        unsafe capus_is_tmpfs(path) == 1
    }
}

public enum TerminalSize {
    /// Columns of the terminal behind a descriptor; nil: it is no terminal.
    public static func columns(of descriptor: Int32) -> Int? {
        let columns = capus_terminal_columns(descriptor)
        return columns > 0 ? Int(columns) : nil
    }
}
