public import Foundation

/// `GET /v1/agent`
public struct AgentInfo: Codable, Sendable, Equatable {
    /// Version of Apus.
    public var version: String
    public var hostName: String
    public var pid: Int32
    public var startedAt: Date
    /// Where other agents bring VMs, as configured.
    public var link: String
    /// Beyond loopback without TLS.
    public var insecure: Bool
    public var stateDirectory: String
    public var runDirectory: String
    /// Names for other agents from the config file, with their addresses.
    public var hosts: [String: String]

    public init(
        version: String, hostName: String, pid: Int32, startedAt: Date, link: String, insecure: Bool,
        stateDirectory: String, runDirectory: String, hosts: [String: String]
    ) {
        self.version = version
        self.hostName = hostName
        self.pid = pid
        self.startedAt = startedAt
        self.link = link
        self.insecure = insecure
        self.stateDirectory = stateDirectory
        self.runDirectory = runDirectory
        self.hosts = hosts
    }
}

/// `POST /v1/migrations/{id}/resolve`: what the operator decides about a job in doubt.
public struct ResolveRequest: Codable, Sendable, Equatable {
    /// true: the VM belongs to the destination; false: to the source.
    public var commit: Bool
    public init(commit: Bool) { self.commit = commit }
}

public enum ApusVersion {
    public static let current = "0.1.0"
}
