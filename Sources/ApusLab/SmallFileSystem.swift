/// A file system with little room, for what must not run over. Needs root.
public struct SmallFileSystem: Sendable {
    public let folder: String

    /// Mounts it over `name` in the laboratory's folder.
    public static func make(_ name: String, mebibytes: Int, in lab: Lab) async throws -> SmallFileSystem {
        let folder = try lab.makeFolder(name)
        try await command(["mount", "-t", "tmpfs", "-o", "size=\(mebibytes)m,mode=700", "tmpfs", folder])
        lab.later("file system at \(folder)") { try await command(["umount", folder]) }
        return SmallFileSystem(folder: folder)
    }

    public func grow(toMebibytes mebibytes: Int) async throws {
        try await command(["mount", "-o", "remount,size=\(mebibytes)m", folder])
    }
}
