/// Something QEMU did by itself, with the moment at which it did it.
public struct QMPEvent: Sendable, Equatable {
    public enum Kind: Sendable, Equatable {
        case stop
        case resume
        /// The guest shut down; `guest`: by itself, else by a command or signal. `reason` is QEMU's, for example `guest-shutdown`.
        case shutdown(guest: Bool, reason: String)
        case reset(guest: Bool)
        /// Needs the migration capability `events`.
        case migration(MigrationStatus)
        /// Round `n` of pre-copy began; 1 is the first pass over all memory. Needs the capability `events`.
        case migrationPass(Int)
        case other(name: String)
    }

    public let kind: Kind
    /// QEMU's own clock (`gettimeofday`), in microseconds since the epoch.
    public let qemuMicroseconds: Int64
    /// When the line reached this process, on the monotonic clock.
    public let arrived: ContinuousClock.Instant
    /// The event's data as QEMU sent it.
    public let data: QMPValue

    public init(kind: Kind, qemuMicroseconds: Int64, arrived: ContinuousClock.Instant, data: QMPValue = .null) {
        self.kind = kind
        self.qemuMicroseconds = qemuMicroseconds
        self.arrived = arrived
        self.data = data
    }
}

extension QMPEvent.Kind {
    init(name: String, data: QMPValue) {
        switch name {
        case "STOP": self = .stop
        case "RESUME": self = .resume
        case "SHUTDOWN":
            self = .shutdown(guest: data["guest"]?.bool ?? false, reason: data["reason"]?.string ?? "unknown")
        case "RESET": self = .reset(guest: data["guest"]?.bool ?? false)
        case "MIGRATION": self = .migration(MigrationStatus(data["status"]?.string ?? ""))
        case "MIGRATION_PASS": self = .migrationPass(Int(data["pass"]?.unsigned ?? 0))
        default: self = .other(name: name)
        }
    }
}
