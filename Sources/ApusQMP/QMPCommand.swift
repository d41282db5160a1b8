/// One QMP command and the type of its reply.
public struct QMPCommand<Reply: Decodable & Sendable>: Sendable {
    public let name: String
    public let arguments: [String: QMPValue]

    public init(_ name: String, _ arguments: [String: QMPValue] = [:]) {
        self.name = name
        self.arguments = arguments
    }

    /// For optional arguments: those that are nil are left out.
    init(_ name: String, present arguments: [String: QMPValue?]) {
        self.init(name, arguments.compactMapValues { $0 })
    }
}

/// The reply `{}` of commands that only succeed or fail.
public struct QMPDone: Decodable, Sendable {
    public init(from decoder: any Decoder) throws {}
}

extension QMPCommand where Reply == QMPDone {
    static var capabilities: QMPCommand { QMPCommand("qmp_capabilities") }

    /// Starts or continues the vCPUs.
    public static var cont: QMPCommand { QMPCommand("cont") }
    public static var stop: QMPCommand { QMPCommand("stop") }
    /// Ends QEMU at once; the connection closes.
    public static var quit: QMPCommand { QMPCommand("quit") }
    /// Asks the guest to shut down (ACPI power button).
    public static var systemPowerdown: QMPCommand { QMPCommand("system_powerdown") }

    /// Starts an outgoing migration; returns at once. `resume` continues a paused post-copy.
    public static func migrate(uri: String, resume: Bool? = nil) -> QMPCommand {
        QMPCommand("migrate", present: ["uri": .string(uri), "resume": resume.map(QMPValue.bool)])
    }
    /// Makes a QEMU started with `-incoming defer` listen at `uri`; once per process. `exitOnError` needs 9.1.
    public static func migrateIncoming(uri: String, exitOnError: Bool? = nil) -> QMPCommand {
        QMPCommand(
            "migrate-incoming", present: ["uri": .string(uri), "exit-on-error": exitOnError.map(QMPValue.bool)])
    }
    public static func migrateSetCapabilities(_ states: [String: Bool]) -> QMPCommand {
        let list = states.sorted { $0.key < $1.key }.map { name, on in
            QMPValue.object(["capability": .string(name), "state": .bool(on)])
        }
        return QMPCommand("migrate-set-capabilities", ["capabilities": .array(list)])
    }
    public static func migrateSetParameters(_ parameters: MigrateParameters) -> QMPCommand {
        QMPCommand("migrate-set-parameters", parameters.arguments)
    }
    public static var migrateCancel: QMPCommand { QMPCommand("migrate_cancel") }
    /// Leaves the state QEMU waits in; `state` is almost always `.preSwitchover`.
    public static func migrateContinue(_ state: MigrationStatus = .preSwitchover) -> QMPCommand {
        QMPCommand("migrate-continue", ["state": .string(state.name)])
    }
    public static var migrateStartPostcopy: QMPCommand { QMPCommand("migrate-start-postcopy") }
    public static func migrateRecover(uri: String) -> QMPCommand {
        QMPCommand("migrate-recover", ["uri": .string(uri)])
    }
    public static var migratePause: QMPCommand { QMPCommand("migrate-pause") }

    /// Starts a dirty-rate measurement. `calcTimeS`: 1-60 seconds. Only page sampling is safe under TCG.
    public static func calcDirtyRate(calcTimeS: Int, samplePagesPerGiB: Int? = nil) -> QMPCommand {
        QMPCommand(
            "calc-dirty-rate",
            present: [
                "calc-time": .int(Int64(calcTimeS)), "sample-pages": samplePagesPerGiB.map { .int(Int64($0)) },
            ])
    }
}

extension QMPCommand where Reply == StatusInfo {
    public static var queryStatus: QMPCommand { QMPCommand("query-status") }
}
extension QMPCommand where Reply == QEMUVersion {
    public static var queryVersion: QMPCommand { QMPCommand("query-version") }
}
extension QMPCommand where Reply == NameInfo {
    public static var queryName: QMPCommand { QMPCommand("query-name") }
}
extension QMPCommand where Reply == MigrationInfo {
    public static var queryMigrate: QMPCommand { QMPCommand("query-migrate") }
}
extension QMPCommand where Reply == MigrationCapabilities {
    public static var queryMigrateCapabilities: QMPCommand { QMPCommand("query-migrate-capabilities") }
}
extension QMPCommand where Reply == MigrateParameters {
    public static var queryMigrateParameters: QMPCommand { QMPCommand("query-migrate-parameters") }
}
extension QMPCommand where Reply == QMPValue {
    /// The value of one QOM property, for example `/machine` `type`.
    public static func qomGet(path: String, property: String) -> QMPCommand {
        QMPCommand("qom-get", ["path": .string(path), "property": .string(property)])
    }
    public static var queryMemoryDevices: QMPCommand { QMPCommand("query-memory-devices") }
    /// A command of any name; the reply as JSON.
    public static func any(_ name: String, _ arguments: [String: QMPValue] = [:]) -> QMPCommand {
        QMPCommand(name, arguments)
    }
}
extension QMPCommand where Reply == MemorySizeSummary {
    public static var queryMemorySizeSummary: QMPCommand { QMPCommand("query-memory-size-summary") }
}
extension QMPCommand where Reply == [CPUInfo] {
    public static var queryCPUsFast: QMPCommand { QMPCommand("query-cpus-fast") }
}
extension QMPCommand where Reply == [MachineTypeInfo] {
    public static var queryMachines: QMPCommand { QMPCommand("query-machines") }
}
extension QMPCommand where Reply == [BlockDevice] {
    public static var queryBlock: QMPCommand { QMPCommand("query-block") }
}
extension QMPCommand where Reply == [BlockNode] {
    public static var queryNamedBlockNodes: QMPCommand { QMPCommand("query-named-block-nodes") }
}
extension QMPCommand where Reply == String {
    /// A human-monitor command; the reply is its text with CR LF line ends.
    public static func human(_ line: String) -> QMPCommand {
        QMPCommand("human-monitor-command", ["command-line": .string(line)])
    }
}
extension QMPCommand where Reply == DirtyRateInfo {
    public static var queryDirtyRate: QMPCommand { QMPCommand("query-dirty-rate") }
}
