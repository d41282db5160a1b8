public import Foundation

/// `apus plan VM HOST`: what would become of a migration, without making it.
public struct PlanRequest: Codable, Sendable, Equatable {
    public var vm: String
    /// As in ``MigrateRequest``.
    public var host: String
    public var maxDowntimeMs: Int
    /// How long the guest's writing is watched.
    public var seconds: Double
    /// As in ``MigrateRequest``.
    public var references: Bool?

    public init(
        vm: String, host: String, maxDowntimeMs: Int = 300, seconds: Double = 2, references: Bool? = nil
    ) {
        self.vm = vm
        self.host = host
        self.maxDowntimeMs = maxDowntimeMs
        self.seconds = seconds
        self.references = references
    }
}

/// A forecast, with what it rests on.
public struct PlanReport: Codable, Sendable, Equatable {
    public var vm: String
    public var host: String
    public var takenAt: Date
    public var maxDowntimeMs: Int
    /// The link as it is now, to this host.
    public var linkBytesPerS: Double
    public var roundTripMs: Double
    /// Guest memory, and the share of it that is zero or was never touched.
    public var memoryBytes: UInt64
    public var zeroShare: Double
    /// Shares of it that the host would read itself: on disks, and in what a VM left there.
    public var diskShare: Double
    public var snapshotShare: Double
    /// The share of it that travels compressed.
    public var squeezedShare: Double
    /// Wire bytes of a page that is not zero, references included.
    public var bytesPerPage: Double
    /// Different memory that the guest writes within 10 s, and within 1 s.
    public var workingSetBytes: Double
    public var writtenBytesPerS: Double
    /// Best first; the first is the recommendation.
    public var options: [PlanOption]
    /// What the forecast does not know.
    public var notes: [String]

    public init(
        vm: String, host: String, takenAt: Date, maxDowntimeMs: Int, linkBytesPerS: Double, roundTripMs: Double,
        memoryBytes: UInt64, zeroShare: Double, diskShare: Double = 0, snapshotShare: Double = 0,
        squeezedShare: Double = 0, bytesPerPage: Double, workingSetBytes: Double, writtenBytesPerS: Double,
        options: [PlanOption], notes: [String] = []
    ) {
        self.vm = vm
        self.host = host
        self.takenAt = takenAt
        self.maxDowntimeMs = maxDowntimeMs
        self.linkBytesPerS = linkBytesPerS
        self.roundTripMs = roundTripMs
        self.memoryBytes = memoryBytes
        self.zeroShare = zeroShare
        self.diskShare = diskShare
        self.snapshotShare = snapshotShare
        self.squeezedShare = squeezedShare
        self.bytesPerPage = bytesPerPage
        self.workingSetBytes = workingSetBytes
        self.writtenBytesPerS = writtenBytesPerS
        self.options = options
        self.notes = notes
    }
}

/// What is expected of one way to migrate.
public struct PlanOption: Codable, Sendable, Equatable {
    public enum Ending: String, Codable, Sendable, CaseIterable {
        /// Rounds get shorter until next to nothing is left.
        case converges
        /// They do not, but what is left fits the allowed pause.
        case fits
        /// What is left never fits it.
        case tooBusy
        /// It does when the VM is slowed down, as `apus migrate` does if it may.
        case slowed
        /// The VM moves first; the rest of its memory follows.
        case follows
    }

    public var port: MemoryPort
    public var mode: MigrationMode
    public var ending: Ending
    public var wireBytes: PlanRange
    public var totalMs: PlanRange
    /// Of `tooBusy`: the pause that would have to be allowed.
    public var downtimeMs: PlanRange
    /// Of `slowed`: the share of its speed that the VM has until it has moved.
    public var slowedTo: Double?

    public init(
        port: MemoryPort, mode: MigrationMode, ending: Ending, wireBytes: PlanRange, totalMs: PlanRange,
        downtimeMs: PlanRange, slowedTo: Double? = nil
    ) {
        self.port = port
        self.mode = mode
        self.ending = ending
        self.wireBytes = wireBytes
        self.totalMs = totalMs
        self.downtimeMs = downtimeMs
        self.slowedTo = slowedTo
    }
}

/// What is likely, and for a guest that writes two standard deviations less or more than it was seen to.
public struct PlanRange: Codable, Sendable, Equatable {
    public var low: Double
    public var likely: Double
    public var high: Double
    public init(low: Double, likely: Double, high: Double) {
        self.low = low
        self.likely = likely
        self.high = high
    }
}
