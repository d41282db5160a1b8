public import ApusSystem
import Foundation

/// What a machine is to this agent, apart from what its vCPUs do.
public enum MachinePhase: String, Codable, Sendable {
    /// It belongs to this host.
    case resident
    /// A destination that is being filled; it belongs to the source.
    case incoming
    /// Loaded, and nobody has told yet whose it is.
    case inDoubt
}

/// How a restarted agent finds a VM again.
public struct MachineRecord: Codable, Sendable, Equatable {
    public var definition: MachineDefinition
    public var phase: MachinePhase
    public var process: ProcessIdentity
    public var qmpPath: String
    public var runDirectory: String
    /// The job that was moving it.
    public var job: String?
    public var note: String?
    public var name: String { definition.name }

    public init(
        definition: MachineDefinition, phase: MachinePhase, process: ProcessIdentity, qmpPath: String,
        runDirectory: String, job: String? = nil, note: String? = nil
    ) {
        self.definition = definition
        self.phase = phase
        self.process = process
        self.qmpPath = qmpPath
        self.runDirectory = runDirectory
        self.job = job
        self.note = note
    }
}
