import Foundation

/// One element of `query-named-block-nodes`: a layer of a disk, from the format down to the file.
public struct BlockNode: Decodable, Sendable, Equatable {
    public let name: String?
    public let driver: String
    /// A path, or `json:{...}` where options make one impossible.
    public let file: String
    public let isEncrypted: Bool

    private enum CodingKeys: String, CodingKey {
        case file
        case name = "node-name"
        case driver = "drv"
        case isEncrypted = "encrypted"
    }
}

/// The local files behind a VM's disks, backing chains included, and those that QEMU loads for it: where pages of the
/// guest may be found again.
public struct DiskImages: Sendable, Equatable {
    public struct Refusal: Sendable, Equatable {
        public let file: String
        public let reason: String
    }
    /// Absolute paths as QEMU sees them, each once, in QEMU's order.
    public private(set) var paths: [String] = []
    public private(set) var refused: [Refusal] = []

    /// Files whose bytes the guest sees somewhere, page by page.
    private static let localDrivers: Set = ["file", "host_device"]
    /// Layers above a file; the file has a node of its own.
    private static let layers: Set = [
        "raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vhdx", "vpc", "parallels", "dmg", "bochs", "cloop", "luks",
        "throttle", "copy-on-read", "preallocate", "snapshot-access", "copy-before-write", "backup-top", "mirror_top",
        "commit_top", "compress",
    ]
    private static let networkDrivers: Set = [
        "nbd", "rbd", "iscsi", "http", "https", "ftp", "ftps", "ssh", "gluster", "nfs", "sheepdog", "quorum",
    ]

    /// - Parameters:
    ///   - loaded: files that QEMU itself puts into the guest's memory, such as its kernel.
    ///   - workingDirectory: QEMU's own, for files that were named relative to it.
    public init(_ nodes: [BlockNode], loaded: [String] = [], workingDirectory: String) {
        let encrypted = Set(nodes.filter(\.isEncrypted).map { Self.path(of: $0.file) })
        var seen: Set<String> = []
        for node in nodes where !Self.layers.contains(node.driver) {
            let file = Self.path(of: node.file)
            if let reason = Self.refusal(node, isEncrypted: encrypted.contains(file)) {
                refused.append(Refusal(file: file, reason: reason))
                continue
            }
            let path = file.hasPrefix("/") ? file : workingDirectory + "/" + file
            if seen.insert(path).inserted { paths.append(path) }
        }
        for file in loaded {
            let path = file.hasPrefix("/") ? file : workingDirectory + "/" + file
            if seen.insert(path).inserted { paths.append(path) }
        }
    }

    private static func refusal(_ node: BlockNode, isEncrypted: Bool) -> String? {
        if networkDrivers.contains(node.driver) { return "it is reached over the network (\(node.driver))" }
        if !localDrivers.contains(node.driver) { return "it is no local file (\(node.driver))" }
        if isEncrypted { return "it is encrypted: no block of it equals a page of the guest" }
        return nil
    }

    /// The file at the end of a `json:{...}` name; other names as they are.
    private static func path(of name: String) -> String {
        guard name.hasPrefix("json:"),
            let value = try? JSONDecoder().decode(QMPValue.self, from: Data(name.dropFirst(5).utf8))
        else { return name.hasPrefix("file:") ? String(name.dropFirst(5)) : name }
        return leaf(value) ?? name
    }

    private static func leaf(_ value: QMPValue) -> String? {
        if let name = value["filename"]?.string { return name }
        if let name = value["file.filename"]?.string { return name }
        return value["file"].flatMap(leaf)
    }
}
