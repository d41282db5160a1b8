/// `query-status`
public struct StatusInfo: Decodable, Sendable, Equatable {
    public let running: Bool
    public let status: RunState
}

/// `query-version`, and part of the greeting.
public struct QEMUVersion: Decodable, Sendable, Equatable, Comparable, CustomStringConvertible {
    public let major: Int
    public let minor: Int
    public let micro: Int
    /// The distributor's package, often empty.
    public let package: String

    public init(major: Int, minor: Int, micro: Int, package: String = "") {
        self.major = major
        self.minor = minor
        self.micro = micro
        self.package = package
    }

    private enum Keys: String, CodingKey { case qemu, package, major, minor, micro }

    public init(from decoder: any Decoder) throws {
        let box = try decoder.container(keyedBy: Keys.self)
        let numbers = try box.nestedContainer(keyedBy: Keys.self, forKey: .qemu)
        major = try numbers.decode(Int.self, forKey: .major)
        minor = try numbers.decode(Int.self, forKey: .minor)
        micro = try numbers.decode(Int.self, forKey: .micro)
        package = try box.decodeIfPresent(String.self, forKey: .package) ?? ""
    }

    public static func < (left: QEMUVersion, right: QEMUVersion) -> Bool {
        (left.major, left.minor, left.micro) < (right.major, right.minor, right.micro)
    }
    /// `7.2.22`
    public var description: String { "\(major).\(minor).\(micro)" }
}

/// `query-name`
public struct NameInfo: Decodable, Sendable, Equatable {
    /// nil when QEMU was started without `-name`.
    public let name: String?
}

/// `query-memory-size-summary`, in bytes.
public struct MemorySizeSummary: Decodable, Sendable, Equatable {
    public let baseMemory: UInt64
    public let pluggedMemory: UInt64?

    private enum CodingKeys: String, CodingKey {
        case baseMemory = "base-memory"
        case pluggedMemory = "plugged-memory"
    }
}

/// One element of `query-cpus-fast`.
public struct CPUInfo: Decodable, Sendable, Equatable {
    public let index: Int
    /// Host thread id.
    public let threadID: Int32

    private enum CodingKeys: String, CodingKey {
        case index = "cpu-index"
        case threadID = "thread-id"
    }
}

/// One element of `query-machines`.
public struct MachineTypeInfo: Decodable, Sendable, Equatable {
    public let name: String
    public let alias: String?
    public let isDefault: Bool?
    /// The id that this machine gives to plain `-m` RAM, `pc.ram` for pc and q35; nil: it takes no backend.
    public let defaultRAMID: String?

    private enum CodingKeys: String, CodingKey {
        case name, alias
        case isDefault = "is-default"
        case defaultRAMID = "default-ram-id"
    }
}

/// One element of `query-block`.
public struct BlockDevice: Decodable, Sendable, Equatable {
    public struct Inserted: Decodable, Sendable, Equatable {
        public let file: String
        public let readOnly: Bool
        public let driver: String
        public let cache: Cache?

        public struct Cache: Decodable, Sendable, Equatable {
            /// O_DIRECT: disks read and write guest memory itself.
            public let direct: Bool
        }

        private enum CodingKeys: String, CodingKey {
            case file, cache
            case readOnly = "ro"
            case driver = "drv"
        }
    }
    public let device: String
    public let inserted: Inserted?
}

/// `query-dirty-rate`
public struct DirtyRateInfo: Decodable, Sendable, Equatable {
    /// `unstarted`, `measuring`, `measured`.
    public let status: String
    /// In MiB/s; only when measured.
    public let dirtyRateMiBps: Int64?

    private enum CodingKeys: String, CodingKey {
        case status
        case dirtyRateMiBps = "dirty-rate"
    }
}
