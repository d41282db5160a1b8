/// `query-migrate`. Times in milliseconds, sizes in bytes. Fields that only one QEMU version sends are optional.
public struct MigrationInfo: Decodable, Sendable, Equatable {
    /// `.none` when no migration was ever started.
    public let status: MigrationStatus
    public let ram: RAM?
    public let totalTimeMs: Int64?
    public let setupTimeMs: Int64?
    /// Measured by the source at the end.
    public let downtimeMs: Int64?
    /// QEMU's forecast while active.
    public let expectedDowntimeMs: Int64?
    public let errorDescription: String?
    /// Where an incoming QEMU listens, for example after `tcp:host:0`.
    public let socketAddresses: [QMPValue]?
    public let xbzrle: XBZRLE?
    /// 7.2 only, for `block` migration.
    public let disk: RAM?
    /// Why the migration cannot be cancelled or started, when QEMU knows.
    public let blockedReasons: [String]?
    public let cpuThrottlePercentage: Int?

    public init(from decoder: any Decoder) throws {
        let box = try decoder.container(keyedBy: Keys.self)
        status = try box.decodeIfPresent(MigrationStatus.self, forKey: .status) ?? .none
        ram = try box.decodeIfPresent(RAM.self, forKey: .ram)
        totalTimeMs = try box.decodeIfPresent(Int64.self, forKey: .totalTime)
        setupTimeMs = try box.decodeIfPresent(Int64.self, forKey: .setupTime)
        downtimeMs = try box.decodeIfPresent(Int64.self, forKey: .downtime)
        expectedDowntimeMs = try box.decodeIfPresent(Int64.self, forKey: .expectedDowntime)
        errorDescription = try box.decodeIfPresent(String.self, forKey: .errorDescription)
        socketAddresses = try box.decodeIfPresent([QMPValue].self, forKey: .socketAddress)
        xbzrle = try box.decodeIfPresent(XBZRLE.self, forKey: .xbzrle)
        disk = try box.decodeIfPresent(RAM.self, forKey: .disk)
        blockedReasons = try box.decodeIfPresent([String].self, forKey: .blockedReasons)
        cpuThrottlePercentage = try box.decodeIfPresent(Int.self, forKey: .cpuThrottle)
    }

    private enum Keys: String, CodingKey {
        case status, ram, downtime, disk
        case totalTime = "total-time"
        case setupTime = "setup-time"
        case expectedDowntime = "expected-downtime"
        case errorDescription = "error-desc"
        case socketAddress = "socket-address"
        case xbzrle = "xbzrle-cache"
        case blockedReasons = "blocked-reasons"
        case cpuThrottle = "cpu-throttle-percentage"
    }
}

extension MigrationInfo {
    /// QEMU's counters for guest RAM.
    public struct RAM: Decodable, Sendable, Equatable {
        public let transferred: UInt64
        public let remaining: UInt64
        /// Sum of migrated blocks; blocks ignored by `x-ignore-shared` are left out.
        public let total: UInt64
        /// Zero pages.
        public let duplicate: UInt64
        /// Pages sent whole.
        public let normal: UInt64
        public let normalBytes: UInt64
        public let pageSize: UInt64?
        /// Rounds begun.
        public let dirtySyncCount: UInt64
        /// Pages per second, measured over the last round.
        public let dirtyPagesRate: UInt64?
        /// Megabits per second.
        public let mbps: Double?
        public let pagesPerSecond: UInt64?
        public let postcopyRequests: UInt64?
        public let multifdBytes: UInt64?
        public let precopyBytes: UInt64?
        public let downtimeBytes: UInt64?
        public let postcopyBytes: UInt64?
        public let dirtySyncMissedZeroCopy: UInt64?
        /// 7.2 only.
        public let skipped: UInt64?

        private enum CodingKeys: String, CodingKey {
            case transferred, remaining, total, duplicate, normal, mbps, skipped
            case normalBytes = "normal-bytes"
            case pageSize = "page-size"
            case dirtySyncCount = "dirty-sync-count"
            case dirtyPagesRate = "dirty-pages-rate"
            case pagesPerSecond = "pages-per-second"
            case postcopyRequests = "postcopy-requests"
            case multifdBytes = "multifd-bytes"
            case precopyBytes = "precopy-bytes"
            case downtimeBytes = "downtime-bytes"
            case postcopyBytes = "postcopy-bytes"
            case dirtySyncMissedZeroCopy = "dirty-sync-missed-zero-copy"
        }
    }

    public struct XBZRLE: Decodable, Sendable, Equatable {
        public let cacheSize: UInt64
        public let bytes: UInt64
        public let pages: UInt64
        public let cacheMiss: UInt64
        public let cacheMissRate: Double
        public let overflow: UInt64

        private enum CodingKeys: String, CodingKey {
            case bytes, pages, overflow
            case cacheSize = "cache-size"
            case cacheMiss = "cache-miss"
            case cacheMissRate = "cache-miss-rate"
        }
    }
}

/// `query-migrate-capabilities`: the names this QEMU knows, and which are on.
public struct MigrationCapabilities: Decodable, Sendable, Equatable {
    public let states: [String: Bool]

    private struct Element: Decodable {
        let capability: String
        let state: Bool
    }

    public init(from decoder: any Decoder) throws {
        let list = try decoder.singleValueContainer().decode([Element].self)
        states = Dictionary(list.map { ($0.capability, $0.state) }, uniquingKeysWith: { _, last in last })
    }

    public func knows(_ name: String) -> Bool { states[name] != nil }
    public var enabled: [String] { states.filter(\.value).keys.sorted() }
}

/// `query-migrate-parameters` and `migrate-set-parameters`: nil is left out when setting.
public struct MigrateParameters: Decodable, Sendable, Equatable {
    /// Bytes per second; 0: unlimited. QEMU's default is 128 MiB/s.
    public var maxBandwidth: UInt64?
    /// Milliseconds, at most 2 000 000.
    public var downtimeLimitMs: UInt64?
    /// Bytes per second; 0: unlimited.
    public var maxPostcopyBandwidth: UInt64?
    public var multifdChannels: Int?
    /// `none`, `zlib`, `zstd`, from 10.0 also `qatzip`, …
    public var multifdCompression: String?
    public var multifdZstdLevel: Int?
    /// Bytes.
    public var xbzrleCacheSize: UInt64?
    /// Percent per step of auto-converge.
    public var cpuThrottleInitial: Int?
    public var cpuThrottleIncrement: Int?
    public var maxCPUThrottle: Int?
    /// Bytes per second that QEMU shall assume for the switch-over; 0: as measured. From 8.2.
    public var availSwitchoverBandwidth: UInt64?
    /// `none`, `legacy`, `multifd`. From 9.0.
    public var zeroPageDetection: String?

    public init(downtimeLimitMs: UInt64? = nil, maxBandwidth: UInt64? = nil) {
        self.downtimeLimitMs = downtimeLimitMs
        self.maxBandwidth = maxBandwidth
    }

    private enum CodingKeys: String, CodingKey {
        case maxBandwidth = "max-bandwidth"
        case downtimeLimitMs = "downtime-limit"
        case maxPostcopyBandwidth = "max-postcopy-bandwidth"
        case multifdChannels = "multifd-channels"
        case multifdCompression = "multifd-compression"
        case multifdZstdLevel = "multifd-zstd-level"
        case xbzrleCacheSize = "xbzrle-cache-size"
        case cpuThrottleInitial = "cpu-throttle-initial"
        case cpuThrottleIncrement = "cpu-throttle-increment"
        case maxCPUThrottle = "max-cpu-throttle"
        case availSwitchoverBandwidth = "avail-switchover-bandwidth"
        case zeroPageDetection = "zero-page-detection"
    }

    var arguments: [String: QMPValue] {
        func number(_ value: Int?) -> QMPValue? { value.map { .int(Int64($0)) } }
        let all: [CodingKeys: QMPValue?] = [
            .maxBandwidth: maxBandwidth.map(QMPValue.count),
            .downtimeLimitMs: downtimeLimitMs.map(QMPValue.count),
            .maxPostcopyBandwidth: maxPostcopyBandwidth.map(QMPValue.count),
            .multifdChannels: number(multifdChannels),
            .multifdCompression: multifdCompression.map(QMPValue.string),
            .multifdZstdLevel: number(multifdZstdLevel),
            .xbzrleCacheSize: xbzrleCacheSize.map(QMPValue.count),
            .cpuThrottleInitial: number(cpuThrottleInitial),
            .cpuThrottleIncrement: number(cpuThrottleIncrement),
            .maxCPUThrottle: number(maxCPUThrottle),
            .availSwitchoverBandwidth: availSwitchoverBandwidth.map(QMPValue.count),
            .zeroPageDetection: zeroPageDetection.map(QMPValue.string),
        ]
        return Dictionary(uniqueKeysWithValues: all.compactMap { key, value in value.map { (key.stringValue, $0) } })
    }
}
