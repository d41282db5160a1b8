public import Foundation

/// What an agent can find elsewhere instead of sending it.
public struct StoreReport: Codable, Sendable, Equatable {
    /// The folder of memory images; nil: none are kept.
    public var path: String?
    public var byteCount: UInt64
    public var bytesMax: UInt64
    /// The one used longest ago first.
    public var images: [StoredImage]
    public var disks: [IndexedDisk]
    /// What stands against using it, or was given up last.
    public var problem: String?

    public init(
        path: String? = nil, byteCount: UInt64 = 0, bytesMax: UInt64 = 0, images: [StoredImage] = [],
        disks: [IndexedDisk] = [], problem: String? = nil
    ) {
        self.path = path
        self.byteCount = byteCount
        self.bytesMax = bytesMax
        self.images = images
        self.disks = disks
        self.problem = problem
    }
}

/// What a VM has left here.
public struct StoredImage: Codable, Sendable, Equatable {
    public var vm: String
    public var memoryBytes: UInt64
    /// When it was made, or used last; nil: it is being written.
    public var usedAt: Date?

    public init(vm: String, memoryBytes: UInt64, usedAt: Date? = nil) {
        self.vm = vm
        self.memoryBytes = memoryBytes
        self.usedAt = usedAt
    }
}

/// A disk image that pages are looked for on.
public struct IndexedDisk: Codable, Sendable, Equatable {
    public var path: String
    /// Distinct blocks of 4 KiB that can be found.
    public var blocks: Int
    public var tableBytes: Int
    /// `waiting`, `indexed`, or why it is not.
    public var state: String

    public init(path: String, blocks: Int, tableBytes: Int, state: String) {
        self.path = path
        self.blocks = blocks
        self.tableBytes = tableBytes
        self.state = state
    }
}
