internal import CApus
internal import Glibc

/// When a file was the one it is: equal stamps mean that nobody has changed it since, as far as its file system tells.
public struct FileStamp: Sendable, Equatable {
    public var device: UInt64
    public var inode: UInt64
    public var byteCount: UInt64
    /// Time of the last write, nanoseconds since 1970; a block device has none.
    public var writtenNs: UInt64

    public init(device: UInt64, inode: UInt64, byteCount: UInt64, writtenNs: UInt64) {
        self.device = device
        self.inode = inode
        self.byteCount = byteCount
        self.writtenNs = writtenNs
    }

    /// The present on the clock that files are stamped with.
    public static func nowNs() -> UInt64 {
        var time = timespec()
        // SAFETY: the structure outlives the call.
        _ = unsafe clock_gettime(CLOCK_REALTIME, &time)
        return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
    }
}

public enum FileKind: Sendable, Equatable { case regular, blockDevice, other }

extension Descriptor {
    /// Opens a file that somebody else named: never waits for a pipe's other end, never becomes a controlling terminal. What is
    /// neither a regular file nor a block device is looked at only, for some devices act when they are opened.
    public static func openContent(_ path: String) throws(SystemError) -> Descriptor {
        // SAFETY: the path is NUL-terminated for the call.
        let fd = try retrying("open") { Int(unsafe path.withCString { unsafe capus_look_at($0) }) }
        let seen = Descriptor(owning: Int32(fd))
        if try seen.kind() == .other { return seen }
        return try openFile("/proc/self/fd/\(seen.number)", O_RDONLY | O_NONBLOCK | O_NOCTTY)
    }

    /// A new, empty file of our own, readable by nobody else; an old one is cut. Links are not followed.
    public static func create(_ path: String) throws(SystemError) -> Descriptor {
        try openFile(path, O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW)
    }

    private static func openFile(_ path: String, _ flags: Int32) throws(SystemError) -> Descriptor {
        // SAFETY: the path is NUL-terminated for the call.
        let fd = try retrying("open") {
            Int(unsafe path.withCString { unsafe capus_open($0, flags | O_CLOEXEC, 0o600) })
        }
        return Descriptor(owning: Int32(fd))
    }

    public func kind() throws(SystemError) -> FileKind {
        switch try status().st_mode & S_IFMT {
        case S_IFREG: .regular
        case S_IFBLK: .blockDevice
        default: .other
        }
    }

    public func stamp() throws(SystemError) -> FileStamp {
        let info = try status()
        let isDevice = info.st_mode & S_IFMT == S_IFBLK
        let end = isDevice ? try retrying("lseek") { lseek(number, 0, SEEK_END) } : info.st_size
        let writtenNs = UInt64(max(0, info.st_mtim.tv_sec)) * 1_000_000_000 + UInt64(info.st_mtim.tv_nsec)
        return FileStamp(
            device: UInt64(isDevice ? info.st_rdev : info.st_dev), inode: UInt64(info.st_ino), byteCount: UInt64(end),
            writtenNs: isDevice ? 0 : writtenNs)
    }

    private func status() throws(SystemError) -> stat {
        var info = stat()
        // SAFETY: the structure outlives the call.
        _ = try retrying("fstat") { Int(unsafe fstat(number, &info)) }
        return info
    }

    /// Fills `range` of the buffer from `offset` of the file on.
    /// - Returns: the bytes read; fewer than asked for only at the file's end.
    public func read(
        at offset: UInt64, into buffer: inout PageBuffer, _ range: Range<Int>
    ) throws(SystemError) -> Int {
        precondition(range.lowerBound >= 0 && range.upperBound <= buffer.byteCount)
        var done = 0
        while done < range.count {
            // SAFETY: the range lies in the buffer, and `done` in the range.
            let count = try retrying("pread") {
                unsafe pread(
                    number, buffer.base + range.lowerBound + done, range.count - done, off_t(offset) + off_t(done))
            }
            if count == 0 { break }
            done += count
        }
        return done
    }

    /// As ``read(at:into:_:)`` but leaves the page cache as it was: what was in it stays, what was not is dropped again.
    /// - Returns: the bytes read, and how many of them came from the disk.
    public func readAside(
        at offset: UInt64, into buffer: inout PageBuffer, _ range: Range<Int>
    ) throws(SystemError) -> (byteCount: Int, fromDisk: Int) {
        precondition(range.lowerBound >= 0 && range.upperBound <= buffer.byteCount)
        // SAFETY: the range lies in the buffer. A failure means nothing is cached, or the file system cannot tell.
        let cached = unsafe max(
            0, capus_read_cached(number, buffer.base + range.lowerBound, range.count, off_t(offset)))
        if cached == range.count { return (cached, 0) }
        let rest = offset + UInt64(cached)
        let read = try read(at: rest, into: &buffer, range.lowerBound + cached..<range.upperBound)
        _ = posix_fadvise(number, off_t(rest), off_t(read), POSIX_FADV_DONTNEED)
        return (cached + read, read)
    }

    /// The file is read here and there: the kernel reads nothing ahead of it.
    public func expectNoOrder() { _ = posix_fadvise(number, 0, 0, POSIX_FADV_RANDOM) }

    /// The next bytes that are no hole, from `offset` on; nil: there are none. All is data where holes are unknown.
    public func nextData(from offset: UInt64) throws(SystemError) -> Range<UInt64>? {
        let data = capus_seek_data(number, off_t(offset))
        if data < 0 {
            if errno == ENXIO { return nil }
            guard errno == EINVAL || errno == ESPIPE else { throw SystemError.last("lseek") }
            let end = try stamp().byteCount
            return offset < end ? offset..<end : nil
        }
        let hole = capus_seek_hole(number, data)
        // The file shrinks under our eyes.
        guard hole > data else { return nil }
        return UInt64(data)..<UInt64(hole)
    }

    public func write(_ source: RawSpan, at offset: UInt64) throws(SystemError) {
        var done = 0
        while done < source.byteCount {
            done += try retrying("pwrite") {
                // SAFETY: `done` stays below the span's length.
                unsafe source.withUnsafeBytes { bytes in
                    guard let from = bytes.baseAddress else { return 0 }
                    return unsafe pwrite(number, from + done, bytes.count - done, off_t(offset) + off_t(done))
                }
            }
        }
    }

    public func truncate(toByteCount count: UInt64) throws(SystemError) {
        _ = try retrying("ftruncate") { Int(ftruncate(number, off_t(count))) }
    }

    /// Returns when what was written is on the disk.
    public func sync() throws(SystemError) { _ = try retrying("fdatasync") { Int(fdatasync(number)) } }
}

/// Files by name, in folders of our own.
public enum Folder {
    /// Makes a folder that nobody else can look into; one that is there stays.
    public static func make(_ path: String) throws(SystemError) {
        // SAFETY: the path is NUL-terminated for the call; so in all calls below.
        if unsafe mkdir(path, 0o700) != 0 && errno != EEXIST { throw SystemError("mkdir \(path)", code: errno) }
    }

    /// Names in a folder, in no order; `.` and `..` are left out.
    public static func names(in path: String) throws(SystemError) -> [String] {
        guard let folder = unsafe opendir(path) else { throw SystemError("opendir \(path)", code: errno) }
        defer { _ = unsafe closedir(folder) }
        var names: [String] = []
        // SAFETY: the entry is valid until the next call, its name ends with NUL inside the field.
        while let entry = unsafe readdir(folder) {
            let name = unsafe withUnsafePointer(to: &entry.pointee.d_name) { name in
                unsafe String(cString: UnsafeRawPointer(name).assumingMemoryBound(to: CChar.self))
            }
            if name != "." && name != ".." { names.append(name) }
        }
        return names
    }

    /// Gives a file another name, in place of what had it: at no moment is there neither.
    public static func rename(_ old: String, to new: String) throws(SystemError) {
        if unsafe Glibc.rename(old, new) != 0 { throw SystemError("rename \(old)", code: errno) }
    }

    /// Removes a file; one that is not there is no error.
    public static func remove(_ path: String) throws(SystemError) {
        if unsafe unlink(path) != 0 && errno != ENOENT { throw SystemError("unlink \(path)", code: errno) }
    }

    /// Returns when the folder's names are on the disk.
    public static func sync(_ path: String) throws(SystemError) {
        let descriptor = try Descriptor.open(path, .read)
        _ = try retrying("fsync") { Int(fsync(descriptor.number)) }
    }

    /// Says that the file is used now, as its time of last write.
    public static func touch(_ path: String) throws(SystemError) {
        if unsafe utimensat(AT_FDCWD, path, nil, 0) != 0 { throw SystemError("utimensat \(path)", code: errno) }
    }
}

extension WorkerThread {
    /// For work that takes only what nobody else wants.
    public static let idle: Int32 = 19

    /// The disk serves the calling thread only when nobody else asks for it, where its scheduler knows such things.
    public static func giveWayOnDisk() { capus_idle_on_disk() }
}

extension SystemError {
    /// The disk, the quota or the largest size of a file is reached.
    public var isNoRoom: Bool { [ENOSPC, EDQUOT, EFBIG].contains(code) }
    /// More than is dealt with.
    public static let tooLarge = EFBIG
    /// Not what was written.
    public static let damaged = EIO
    public static let noMemory = ENOMEM
    public var isMissing: Bool { code == ENOENT }
}
