/// A disk of which one half is in a qcow2 file and the other in a block device under it, as clones of a template have it.
///
/// ```
///   top.qcow2   [ first half ][ nothing   ]
///   /dev/loopN  [ zeros      ][ last half ]      its content is that of a page cache disk
/// ```
public enum DiskChain {
    /// Needs root.
    ///
    /// - Returns: path of the qcow2 file.
    public static func make(mebibytes: Int, in lab: Lab) async throws -> String {
        let (base, top) = (lab.path("base.img"), lab.path("top.qcow2"))
        try PageCacheDisk(mebibytes: mebibytes, path: base).make()
        let half = "\(mebibytes / 2)M"
        // Copied before it is hidden.
        let device = try await LoopDevice.make(over: base, in: lab).path
        try await command(["qemu-img", "create", "-q", "-f", "qcow2", "-b", device, "-F", "raw", top])
        try await command(["qemu-io", "-f", "qcow2", "-c", "write -q -s \(base) 0 \(half)", top])
        try await command(["qemu-io", "-f", "raw", "-c", "write -q -P 0 0 \(half)", device])
        return top
    }
}
