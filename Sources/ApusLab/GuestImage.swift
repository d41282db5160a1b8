internal import Foundation

/// Kernel and initrd as `./dev setup` builds them.
public struct GuestImage: Sendable, Equatable {
    public let kernel: String
    public let initrd: String
    /// The same with Debian's redis-server in it.
    public var redisInitrd: String { "\(initrd)-redis" }

    /// From `APUS_GUEST`, which `./dev` sets, else what `./dev setup` built last.
    ///
    /// - Throws: `LabError.guestMissing`.
    public static func find() throws -> GuestImage {
        let environment = ProcessInfo.processInfo.environment
        let folder = environment["APUS_GUEST"] ?? "\(labCache())/guest/current"
        let image = GuestImage(kernel: "\(folder)/vmlinuz", initrd: "\(folder)/initrd")
        for file in [image.kernel, image.initrd, image.redisInitrd]
        where !FileManager.default.isReadableFile(atPath: file) {
            throw LabError.guestMissing(folder: folder)
        }
        return image
    }
}

/// The folder that `./dev` keeps its downloads in.
func labCache() -> String {
    let environment = ProcessInfo.processInfo.environment
    if let cache = environment["APUS_CACHE"] { return cache }
    return HostPair.canMakeNamespaces ? "/var/cache/apus-lab" : "\(NSHomeDirectory())/.cache/apus-lab"
}
