/// `apus vm run NAME -- qemu-system-x86_64 …`
public struct RunRequest: Codable, Sendable, Equatable {
    public var name: String
    /// QEMU binary and its arguments. `{run}` stands for the VM's runtime directory on whatever host it runs.
    public var command: [String]
    public var workingDirectory: String?
    public init(name: String, command: [String], workingDirectory: String? = nil) {
        self.name = name
        self.command = command
        self.workingDirectory = workingDirectory
    }
}

/// `apus vm adopt --qmp PATH [--name NAME] [-- COMMAND AT THE DESTINATION…]`
public struct AdoptRequest: Codable, Sendable, Equatable {
    public var qmpPath: String
    public var name: String?
    /// How a destination starts this VM; nil: the running QEMU's own command line.
    public var command: [String]?
    public init(qmpPath: String, name: String? = nil, command: [String]? = nil) {
        self.qmpPath = qmpPath
        self.name = name
        self.command = command
    }
}

public enum MachineState: String, Codable, Sendable {
    case starting, running, paused
    /// A destination QEMU that is being filled; it has never run here.
    case incoming
    /// Loaded completely and paused here; the source agent has yet to say who owns the VM.
    case inDoubt
    /// The VM's QEMU is gone.
    case stopped
    /// The QEMU process lives but does not answer.
    case unresponsive
}

public enum MachineOrigin: String, Codable, Sendable { case run, adopted, migrated }

public struct MachineSummary: Codable, Sendable, Equatable {
    public var name: String
    public var state: MachineState
    public var origin: MachineOrigin
    public var pid: Int32?
    public var machineType: String?
    public var qemuVersion: String?
    public var memoryBytes: UInt64?
    public var vcpus: Int?
    public var qmpPath: String?
    public var command: [String]
    /// The id of the job that is moving this VM now.
    public var job: String?
    /// What an operator must know about this state, and what to do.
    public var note: String?

    public init(
        name: String, state: MachineState, origin: MachineOrigin, pid: Int32? = nil, machineType: String? = nil,
        qemuVersion: String? = nil, memoryBytes: UInt64? = nil, vcpus: Int? = nil, qmpPath: String? = nil,
        command: [String], job: String? = nil, note: String? = nil
    ) {
        self.name = name
        self.state = state
        self.origin = origin
        self.pid = pid
        self.machineType = machineType
        self.qemuVersion = qemuVersion
        self.memoryBytes = memoryBytes
        self.vcpus = vcpus
        self.qmpPath = qmpPath
        self.command = command
        self.job = job
        self.note = note
    }
}
