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

    /// The source's ends of TCP connections between the two hosts, `ADDRESS:PORT`.
    public var connections: Set<String> {
        get async throws {
            let words = ["ss", "-H", "-t", "-n", "state", "established", "dst", destination.address]
            let lines = try await command(source.command(words)).split(separator: "\n")
            return Set(lines.compactMap { $0.split(separator: " ").dropFirst(2).first.map(String.init) })
        }
    }

    /// Loses every packet of one host to the other without a word, or no more; the other way stays as it is.
    public func setPath(from: Host, to: Host, open: Bool) async throws {
        guard isNamespaced else { throw LabError.notEnough(what: "rights to block a path: not root") }
        // A neighbour that nobody is.
        let nobody = ["replace", to.address, "lladdr", "02:00:00:00:00:77", "nud", "permanent"]
        try await from.ip(["neigh"] + (open ? ["del", to.address] : nobody) + ["dev", from.device])
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

    /// Pages that a VM lacks here, counted in the agent's own file: a command takes longer than many pages. nil: it has none to
    /// lack, or no more.
    public func missingPages(of vm: String) -> Int? {
        FileManager.default.contents(atPath: "\(run)/vms/\(vm)/pull.missing")?.reduce(0) { $0 + $1.nonzeroBitCount }
    }

    /// Returns when at most this share of the pages is missing that the VM lacked when it was handed over; false: nothing was
    /// ever missing, or all has come.
    public func waitForPages(of vm: String, missingShare: Double, seconds: Double) async throws -> Bool {
        var all: Int?
        return try await wait(for: "pages of \(vm) at \(name)", seconds: seconds, every: .milliseconds(1)) {
            guard let now = missingPages(of: vm) else { return all == nil ? nil : false }
            let most = max(all ?? 0, now)
            all = most
            return most > 0 && Double(now) <= Double(most) * missingShare ? now > 0 : nil
        }
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
