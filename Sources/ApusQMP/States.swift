/// QEMU's MigrationStatus; a value of a later QEMU is kept by its name.
public enum MigrationStatus: Sendable, Hashable, Decodable {
    /// No migration has been started (QEMU leaves the field out).
    case none
    case setup, active, device, completed, failed, cancelling, cancelled
    case preSwitchover, waitUnplug
    case postcopyActive, postcopyPaused, postcopyRecover
    case other(String)

    public init(_ name: String) {
        self = Self.named.first { $0.1 == name }?.0 ?? .other(name)
    }

    public init(from decoder: any Decoder) throws {
        self.init(try decoder.singleValueContainer().decode(String.self))
    }

    /// QEMU's spelling.
    public var name: String {
        if case .other(let name) = self { return name }
        return Self.named.first { $0.0 == self }?.1 ?? "none"
    }

    /// Nothing will follow without a new command.
    public var isFinal: Bool {
        switch self {
        case .completed, .failed, .cancelled: true
        case .none, .setup, .active, .device, .cancelling, .preSwitchover, .waitUnplug, .postcopyActive,
            .postcopyPaused, .postcopyRecover, .other:
            false
        }
    }

    private static let named: [(MigrationStatus, String)] = [
        (.none, "none"), (.setup, "setup"), (.active, "active"), (.device, "device"), (.completed, "completed"),
        (.failed, "failed"), (.cancelling, "cancelling"), (.cancelled, "cancelled"),
        (.preSwitchover, "pre-switchover"), (.waitUnplug, "wait-unplug"), (.postcopyActive, "postcopy-active"),
        (.postcopyPaused, "postcopy-paused"), (.postcopyRecover, "postcopy-recover"),
    ]
}

/// QEMU's RunState; a value that has no meaning for migration is kept by its name.
public enum RunState: Sendable, Hashable, Decodable {
    case running, paused, prelaunch, inMigrate, finishMigrate, postMigrate, shutdown, suspended, internalError, ioError
    case guestPanicked, watchdog, saveVM, restoreVM, debug, colo
    case other(String)

    public init(_ name: String) {
        self = Self.named.first { $0.1 == name }?.0 ?? .other(name)
    }

    public init(from decoder: any Decoder) throws {
        self.init(try decoder.singleValueContainer().decode(String.self))
    }

    /// QEMU's spelling.
    public var name: String {
        if case .other(let name) = self { return name }
        return Self.named.first { $0.0 == self }?.1 ?? "unknown"
    }

    private static let named: [(RunState, String)] = [
        (.running, "running"), (.paused, "paused"), (.prelaunch, "prelaunch"), (.inMigrate, "inmigrate"),
        (.finishMigrate, "finish-migrate"), (.postMigrate, "postmigrate"), (.shutdown, "shutdown"),
        (.suspended, "suspended"), (.internalError, "internal-error"), (.ioError, "io-error"),
        (.guestPanicked, "guest-panicked"), (.watchdog, "watchdog"), (.saveVM, "save-vm"),
        (.restoreVM, "restore-vm"), (.debug, "debug"), (.colo, "colo"),
    ]
}
