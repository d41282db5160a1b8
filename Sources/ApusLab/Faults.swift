public import ApusAPI

// What fault tests do to a migration, and how they see who runs the guest afterwards.

extension HostPair {
    /// Resets every TCP connection of one host, as a firewall or a failing card does: both ends get an error at once.
    public func resetConnections(of host: Host) async throws {
        guard host.namespace != nil else { throw LabError.notEnough(what: "rights to reset connections: not root") }
        try await command(host.command(["ss", "-K", "-t", "-n", "dst", "10.77.0.0/30"]))
    }

    /// Whether a TCP connection exists between the two hosts.
    public var hasConnections: Bool {
        get async throws {
            try await command(source.command(["ss", "-H", "-t", "-n", "dst", destination.address])).isEmpty == false
        }
    }
}

extension Agent {
    /// Waits until a VM's latest job satisfies `condition`, looking as often as a phase that lasts milliseconds needs.
    @discardableResult
    public func job(of vm: String, seconds: Double, where condition: (JobStatus) -> Bool) async throws -> JobStatus {
        try await wait(for: "a job of \(vm)", seconds: seconds, every: .milliseconds(5)) {
            let latest = try? await latestJob(of: vm)
            return latest.flatMap { condition($0) ? $0 : nil }
        }
    }
}

/// Who runs the guest, seen from the consoles of all hosts where a QEMU for it exists. Anything but exactly one is a
/// violation of the first rule of migration.
public func hostsRunning(_ consoles: [Console], seconds: Double = 1) async throws -> [Int] {
    let before = consoles.map(\.trace.ticks.count)
    try await ContinuousClock().sleep(for: .seconds(seconds))
    return zip(consoles, before).enumerated().filter { $1.0.trace.ticks.count > $1.1 + 2 }.map(\.offset)
}
