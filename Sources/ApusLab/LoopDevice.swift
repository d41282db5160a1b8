/// A block device over a file, which can be made to fail.
public struct LoopDevice: Sendable {
    /// `/dev/loopN`.
    public let path: String
    private let file: String

    /// Needs root.
    public static func make(over file: String, in lab: Lab) async throws -> LoopDevice {
        let output = try await command(["losetup", "--find", "--show", file])
        let device = LoopDevice(path: output.split(separator: "\n").first.map(String.init) ?? "", file: file)
        lab.later("block device \(device.path)") { try await command(["losetup", "--detach", device.path]) }
        return device
    }

    /// A device with the content of a page cache disk.
    public static func pageCacheDisk(mebibytes: Int, in lab: Lab) async throws -> LoopDevice {
        let file = lab.path("device.img")
        try PageCacheDisk(mebibytes: mebibytes, path: file).make()
        return try await make(over: file, in: lab)
    }

    /// From now on all that is read behind its first MiB is an I/O error (EIO): its file is cut under it, and what the kernel
    /// has of its content is dropped.
    public func fail() async throws {
        try await command(["truncate", "--size", "1M", file])
        try await command(["blockdev", "--flushbufs", path])
    }
}
