import ApusAPI
import ApusQMP
import ApusSystem
import Foundation

/// What one QEMU binary can be, asked of it by starting it without a machine.
struct QemuBinary: Sendable {
    let version: QEMUVersion
    let machineTypes: [MachineTypeInfo]

    /// By name or alias; nil name: QEMU's default machine.
    func machineType(_ name: String?) -> MachineTypeInfo? {
        guard let name else { return machineTypes.first { $0.isDefault == true } }
        return machineTypes.first { $0.name == name || $0.alias == name }
    }
}

/// Asks each QEMU binary once.
actor QemuCatalog {
    private struct Key: Hashable {
        /// Words before the binary: `taskset`, `ip netns exec …`.
        let wrapper: [String]
        let file: FileIdentity
    }

    private let runDirectory: String
    private var known: [Key: QemuBinary] = [:]
    private var probes = 0

    /// Time a QEMU without machine gets to say what it is.
    static let probeTimeout: Duration = .seconds(30)

    init(runDirectory: String) { self.runDirectory = runDirectory }

    /// Asks the QEMU on the search path ahead of time, so that the first VM to arrive need not wait for it.
    func warmUp() async { _ = try? await binary(launcher: ["qemu-system-x86_64"], workingDirectory: nil) }

    /// - Throws: `Problem` `qemu-missing`, `qemu-unusable`.
    func binary(launcher: [String], workingDirectory: String?) async throws -> QemuBinary {
        let executable = try Executable.find(launcher[0], workingDirectory: workingDirectory)
        // The QEMU itself may be a later word of the launcher; a new version of it is a new file too.
        let qemu =
            (try? Executable.find(launcher[launcher.count - 1], workingDirectory: workingDirectory)) ?? executable
        guard let file = try? FileIdentity.of(path: qemu) else { throw Executable.missing(qemu) }
        let key = Key(wrapper: Array(launcher.dropLast()), file: file)
        if let found = known[key] { return found }
        let binary = try await probe(executable, Array(launcher.dropFirst()), workingDirectory)
        known[key] = binary
        return binary
    }

    private func probe(_ executable: String, _ words: [String], _ workingDirectory: String?) async throws -> QemuBinary
    {
        probes += 1
        let stem = "\(runDirectory)/probe-\(probes)"
        let log = stem + ".log"
        let socket = stem + ".sock"
        defer {
            for path in [log, socket] { try? FileManager.default.removeItem(atPath: path) }
        }
        let arguments = [
            "-M", "none", "-nodefaults", "-display", "none", "-S", "-qmp", "unix:\(socket),server=on,wait=off",
        ]
        let process: ProcessHandle
        do {
            process = try ProcessHandle.spawn(
                SpawnRequest(
                    executable: executable, arguments: words + arguments, workingDirectory: workingDirectory,
                    logPath: log))
        } catch {
            throw Problem("qemu-unusable", "\(executable) could not be started: \(error.reason).")
        }
        // Whatever happens: this process must not stay.
        defer { try? process.signal(SIGKILL) }
        do {
            let client = try await QemuStart.monitor(of: process, path: socket, timeout: Self.probeTimeout)
            let types = try await client.execute(.queryMachines)
            await client.close()
            return QemuBinary(version: client.version, machineTypes: types)
        } catch let error where !(error is CancellationError) {
            let said = QemuStart.lastWords(log)
            throw Problem(
                "qemu-unusable",
                "\(executable) did not answer as a QEMU (\(error))\(said.isEmpty ? "." : "; it said: \(said)")",
                advice: "Start it by hand with -M none to see why.")
        }
    }
}

/// Finding programs as a shell does.
enum Executable {
    static func find(_ word: String, workingDirectory: String?) throws(Problem) -> String {
        let files = FileManager.default
        if word.contains("/") {
            let base = workingDirectory ?? files.currentDirectoryPath
            let path = word.hasPrefix("/") ? word : base + "/" + word
            guard files.isExecutableFile(atPath: path) else { throw missing(path) }
            return path
        }
        let directories = ProcessInfo.processInfo.environment["PATH"] ?? "/usr/local/bin:/usr/bin:/bin"
        for directory in directories.split(separator: ":") {
            let path = "\(directory)/\(word)"
            if files.isExecutableFile(atPath: path) { return path }
        }
        throw missing(word)
    }

    static func missing(_ word: String) -> Problem {
        Problem(
            "qemu-missing", "The QEMU binary \(word) is not on this host, or not executable.",
            advice: "Install it (apt-get install qemu-system-x86), or name another binary in the VM's command.")
    }
}

/// From a started process to its monitor.
enum QemuStart {
    /// Between two looks whether the socket is there.
    static let lookEvery: Duration = .milliseconds(10)

    /// Waits until the QEMU answers at `path`.
    ///
    /// - Throws: `QMPError`; `.closed` when the process ended first.
    static func monitor(of process: ProcessHandle, path: String, timeout: Duration) async throws -> QMPClient {
        let deadline = ContinuousClock.now + timeout
        while true {
            do {
                let left = ContinuousClock.now.duration(to: deadline)
                return try await QMPClient.connect(path: path, timeout: max(left, .milliseconds(1)))
            } catch QMPError.connectFailed(let path, let reason) {
                if process.exit != nil { throw QMPError.closed }
                if ContinuousClock.now >= deadline { throw QMPError.connectFailed(path: path, reason: reason) }
                try await Task.sleep(for: lookEvery)
            } catch QMPError.closed {
                // Accepted by a QEMU that ended at once: its exit follows.
                if process.exit != nil || ContinuousClock.now >= deadline { throw QMPError.closed }
                try await Task.sleep(for: lookEvery)
            }
        }
    }

    /// The end of QEMU's log as one line, for people.
    static func lastWords(_ path: String) -> String {
        guard let bytes = try? ProcFile.bytes(path) else { return "" }
        let lines = String(decoding: bytes.suffix(2000), as: UTF8.self).split(separator: "\n").suffix(6)
        return lines.map { $0.trimmingCharacters(in: .whitespaces) }.joined(separator: " / ")
    }
}
