internal import Foundation

/// Disks for guests that read them past their page cache (`prove.direct`): word i is a function of i, so that a guest knows
/// what every block must hold.
public enum DirectDisk {
    static let mebibytes = 64
    /// Eight requests of half a MiB under way take some 40 ms.
    private static let slowBytesPerS = 100_000_000
    private static let daemon = "/usr/bin/qemu-storage-daemon"

    /// The image, in the cache folder, which is on a real disk: O_DIRECT needs one. Made once; a reader never sees half
    /// of it.
    public static func image() throws -> String {
        let path = "\(labCache())/direct-\(mebibytes)M.img"
        if FileManager.default.fileExists(atPath: path) { return path }
        var data = Data(capacity: mebibytes << 20)
        for index in 0..<UInt64(mebibytes) << 17 {
            let word = word(index)
            for shift in stride(from: 0, to: 64, by: 8) {
                data.append(UInt8(truncatingIfNeeded: word >> UInt64(shift)))
            }
        }
        try data.write(to: URL(fileURLWithPath: path), options: .atomic)
        return path
    }

    public static var canBeSlow: Bool {
        FileManager.default.isExecutableFile(atPath: daemon) && FileManager.default.isWritableFile(atPath: "/dev/fuse")
    }

    /// The same disk, whose every read takes long: the memory that a request writes to is pinned all that time, so what an
    /// agent does wrong with such memory is seen, which a fast disk hides. A file system in user space serves it.
    ///
    /// Call it before anything that shall see it: network namespaces have mounts of their own.
    public static func slow(in lab: Lab) async throws -> String {
        let path = try lab.makeFolder("slow") + "/disk.img"
        guard FileManager.default.createFile(atPath: path, contents: nil) else {
            throw LabError.notEnough(what: "room or rights to make \(path)")
        }
        lab.later("the slow disk") { _ = try? await attempt(["umount", "-l", path], seconds: 10) }
        let process = try await lab.start(
            "slow-disk",
            [
                daemon, "--object", "throttle-group,id=g,x-bps-read=\(slowBytesPerS)",
                "--blockdev", "driver=file,node-name=image,filename=\(try image()),read-only=on,locking=off",
                "--blockdev", "driver=throttle,node-name=slow,throttle-group=g,file=image,read-only=on",
                "--export", "type=fuse,id=e,node-name=slow,mountpoint=\(path),writable=off",
            ])
        try await wait(for: "the slow disk", seconds: 10, every: .milliseconds(20)) {
            try process.mustRun()
            let size = try FileManager.default.attributesOfItem(atPath: path)[.size] as? Int
            return size == mebibytes << 20 ? true : nil
        }
        return path
    }

    /// As in `Guest/direct.c`.
    static func word(_ index: UInt64) -> UInt64 { SplitMix.mixed(index &+ 1) }
}
