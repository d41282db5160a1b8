public import ApusAPI
internal import Foundation
internal import Glibc

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
    public func job(_ id: String) async throws -> JobStatus {
        try Self.decode(JobStatus.self, try await apus(["job", "show", id, "--json"]))
    }

    /// Waits until a job has ended.
    public func end(of id: String, seconds: Double) async throws -> JobStatus {
        try await wait(for: "the end of job \(id)", seconds: seconds, every: .milliseconds(50)) {
            let job = try await job(id)
            return job.phase.isFinal ? job : nil
        }
    }

    /// Files that a session held by `APUS_REHEARSE` leaves when it gets to that point.
    public func isHeld(at point: String) -> Bool { FileManager.default.fileExists(atPath: rehearsalPath(point)) }
    public func forgetHold(at point: String) { try? FileManager.default.removeItem(atPath: rehearsalPath(point)) }
    private func rehearsalPath(_ point: String) -> String {
        "\(run)/rehearsal-\(point.replacing(":", with: "-"))"
    }

    /// What lies in the run directory's `vms`: `NAME/FILE`.
    public func machineFiles() -> [String] {
        ((try? FileManager.default.subpathsOfDirectory(atPath: "\(run)/vms")) ?? []).sorted()
    }

    /// Descriptors and threads that the agent has now.
    public func holdings() -> (descriptors: Int, threads: Int) {
        func count(_ what: String) -> Int {
            ((try? FileManager.default.contentsOfDirectory(atPath: "/proc/\(process.pid)/\(what)")) ?? []).count
        }
        return (count("fd"), count("task"))
    }

    /// Ends the agent as `kill -9` does; returns when it is gone.
    public func kill() async throws {
        process.signal(SIGKILL)
        try await wait(for: "agent \(name) to be gone", seconds: 5) { process.status }
    }

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
