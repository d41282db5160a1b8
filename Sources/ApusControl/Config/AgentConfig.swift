public import ApusAPI
public import ApusMemory

/// Everything an agent can be told. The keys in a file are the property names.
public struct AgentConfig: Codable, Sendable, Equatable {
    public struct API: Codable, Sendable, Equatable {
        /// nil: `agent.sock` in `runDirectory`. Mode 0600.
        public var socket: String?
        /// `ADDRESS:PORT` for HTTP beside the socket; nil: none.
        public var listen: String?
        public init(socket: String? = nil, listen: String? = nil) {
            self.socket = socket
            self.listen = listen
        }
    }

    public struct Link: Codable, Sendable, Equatable {
        /// `ADDRESS:PORT` where other agents bring VMs; port 0: any free one.
        public var listen: String = "127.0.0.1:7421"
        /// TCP connections for pages in each migration, 1 to 16.
        public var lanes: Int = 2
        /// Listen beyond loopback without TLS, for the link and the API.
        public var insecure: Bool = false
        /// How long a lost connection is tried to be restored while the guest runs, in seconds; 0: never.
        public var reconnectS: Double = 30
        /// After how many seconds without its source an operator is told which pages of a VM are still missing.
        public var sourceLossS: Double = 60
        public init() {}
    }

    /// How this agent sends VMs.
    public struct Migrate: Codable, Sendable, Equatable {
        /// Cap of the memory for line hashes of one migration, in MiB; nil: none. Pages beyond it travel whole.
        public var lineTableMiB: Int?
        /// Pages that the guest writes in every round wait until they cool, or until the switch.
        public var holdHotPages: Bool = true
        /// For how long it is recorded what a VM uses before it moves in mode `postcopy`, in milliseconds; 0: not at all.
        public var recordMs: Double = 2000
        /// What it does not use travels meanwhile.
        public var sendWhileRecording: Bool = true
        /// What decides the order of pages that nobody has asked for.
        public var prefetch: Prefetch = .trend
        /// With `prefetch: given`: a file with the order, for experiments.
        public var pushOrderFile: String?
        /// What may be done about a VM that writes faster than its memory travels, unless its migration says otherwise.
        public var allow: [MigrationMeans] = [.throttle]
        /// With nothing more to be done, such a VM is waited for so long to calm down, in seconds.
        public var patienceS: Double = 30
        public init() {}
    }

    /// Content that need not travel, because it is on disks that both hosts read, or was left by the VM at an earlier stay.
    public struct Content: Codable, Sendable, Equatable {
        /// Index the disks of the VMs that are here, and refer to them.
        public var disks: Bool = true
        /// Cap of the memory for all indexes, in MiB; 12 bytes for 4 KiB of a disk.
        public var indexMiB: Int = 256
        /// How fast disks are read for it, in MB/s.
        public var indexMBps: Double = 50
        /// Cap of the store of memory images that VMs leave when they go, in MiB; 0: nothing is kept.
        public var storeMiB: Int = 4096
        /// For how long a VM that has left may keep its RAM here until that is written, in seconds.
        public var keepS: Double = 300
        /// A file with a secret of 16 bytes at least; nil: this agent makes one of its own.
        public var keyFile: String?
        /// Trust domains of VMs, by name; others are in `default`. Content of two domains is never matched.
        public var domains: [String: String] = [:]
        public init() {}
    }

    public enum LogFormat: String, Codable, Sendable, CaseIterable { case text, json }

    /// The database; survives reboots.
    public var stateDirectory: String = "/var/lib/apus"
    /// Sockets and logs; need not survive a reboot.
    public var runDirectory: String = "/run/apus"
    public var api = API()
    public var link = Link()
    public var migrate = Migrate()
    public var content = Content()
    /// A directory on tmpfs where guest RAM is made.
    public var ramDirectory: String = "/dev/shm"
    /// Names for other agents' link addresses, `ADDRESS[:PORT]`.
    public var hosts: [String: String] = [:]
    public var logFormat: LogFormat = .text
    /// `trace`, `debug`, `info`, `notice`, `warning`, `error`, `critical`.
    public var logLevel: String = "info"

    public init() {}

    public static let linkPort = 7421
    public var apiSocket: String { api.socket ?? runDirectory + "/agent.sock" }
    public var databasePath: String { stateDirectory + "/apus.db" }
    public func runDirectory(ofVM name: String) -> String { "\(runDirectory)/vms/\(name)" }
}
