public import ApusQMP
public import ApusSystem

/// A VM whose QEMU this agent has hold of. The handle stays valid after the QEMU has gone; its commands then fail.
public final class Machine: Sendable {
    public let definition: MachineDefinition
    public let qmp: QMPClient
    /// This VM's own directory on this host, mode 0700: sockets of a migration belong here.
    public let runDirectory: String
    /// QEMU's stdout and stderr; nil for an adopted QEMU.
    public let logPath: String?
    /// What the launch did otherwise than one might expect.
    public let launchNotes: [String]
    let process: ProcessHandle

    public var name: String { definition.name }
    public var pid: Int32 { process.pid }
    public var identity: ProcessIdentity { process.identity }
    /// nil while QEMU runs.
    public var exit: ProcessExit? { process.exit }

    init(
        definition: MachineDefinition, qmp: QMPClient, runDirectory: String, logPath: String?,
        launchNotes: [String] = [], process: ProcessHandle
    ) {
        self.definition = definition
        self.qmp = qmp
        self.runDirectory = runDirectory
        self.logPath = logPath
        self.launchNotes = launchNotes
        self.process = process
    }

    /// Waits for the end of QEMU; nil when the task was cancelled first.
    public func exited() async -> ProcessExit? { await process.exited() }

    /// The end of QEMU's log as one line, for an error message; empty without a log.
    public var lastWords: String { logPath.map(QemuStart.lastWords) ?? "" }

    /// Signals this very process.
    ///
    /// - Throws: `SystemError`, `ESRCH` when it has ended.
    public func signal(_ number: Int32) throws(SystemError) { try process.signal(number) }
}

extension ProcessHandle {
    func exited() async -> ProcessExit? {
        let (stream, continuation) = AsyncStream.makeStream(of: ProcessExit.self)
        onExit { exit in
            continuation.yield(exit)
            continuation.finish()
        }
        for await exit in stream { return exit }
        return nil
    }

    /// Waits at most `limit`; false: it still runs.
    func ends(within limit: Duration) async -> Bool {
        if exit != nil { return true }
        return await withTaskGroup(of: Bool.self) { group in
            group.addTask { await self.exited() != nil }
            group.addTask {
                try? await Task.sleep(for: limit)
                return false
            }
            let ended = await group.next() ?? false
            group.cancelAll()
            return ended || self.exit != nil
        }
    }
}

extension ProcessExit {
    /// `ended with code 1`, `was killed by signal 9`, `ended`.
    var told: String {
        switch self {
        case .code(let code): "ended with code \(code)"
        case .signal(let number): "was killed by signal \(number)"
        case .unknown: "ended"
        }
    }
}

extension Machine {
    /// Nil when QEMU does not answer.
    func runState() async -> RunState? { (try? await qmp.execute(.queryStatus))?.status }
}
