public import ApusAPI

/// The command that starts a VM on this host: the operator's, with what Apus needs added. Pure.
public struct LaunchPlan: Sendable, Equatable {
    public enum Purpose: Sendable, Equatable {
        /// A new VM.
        case run
        /// A QEMU that waits to be filled, paused, with exactly this machine type.
        ///
        /// `owningMemory`: some of it will be fetched when the guest runs already, so RAM that the command wants private is put
        /// into shared files all the same, if there is room.
        case incoming(machineType: String, owningMemory: Bool = false)
    }

    /// What the host offers.
    public struct Place: Sendable {
        public var runDirectory: String
        public var ramDirectory: String
        /// Free bytes there.
        public var ramRoomBytes: UInt64
        /// The id this machine type gives to plain `-m` RAM; nil: it takes no memory backend.
        public var defaultRAMID: String?

        public init(runDirectory: String, ramDirectory: String, ramRoomBytes: UInt64, defaultRAMID: String?) {
            self.runDirectory = runDirectory
            self.ramDirectory = ramDirectory
            self.ramRoomBytes = ramRoomBytes
            self.defaultRAMID = defaultRAMID
        }
    }

    /// Launcher first, placeholders filled.
    public let command: [String]
    /// How many words of `command` are the launcher.
    public let launcherCount: Int
    /// Guest RAM is a shared file that others can map.
    public let sharesRAM: Bool
    /// What was not done, and why.
    public let notes: [String]

    public static func qmpPath(runDirectory: String) -> String { runDirectory + "/qmp.sock" }
    public static func logPath(runDirectory: String) -> String { runDirectory + "/qemu.log" }

    /// - Throws: `Problem` `daemonize-refused`, `incoming-refused`, `socket-path-too-long`, those of `QemuCommandLine`.
    public init(
        name: String, command template: [String], ramBytes: UInt64, purpose: Purpose, place: Place
    ) throws(Problem) {
        let qmp = Self.qmpPath(runDirectory: place.runDirectory)
        guard qmp.utf8.count <= Self.socketPathBytesMax else {
            throw Problem(
                "socket-path-too-long",
                "The monitor's socket path \(qmp) has \(qmp.utf8.count) bytes; the kernel takes \(Self.socketPathBytesMax).",
                advice: "Give the agent a shorter --run directory or the VM a shorter name.")
        }
        var line = try QemuCommandLine(
            template.map { $0.replacing(MachineDefinition.runPlaceholder, with: place.runDirectory) })
        var owningMemory = false
        switch purpose {
        case .run:
            try Self.refuse(in: line)
        case .incoming(let type, let owns):
            owningMemory = owns
            line.remove("incoming", "S", "daemonize", "pidfile")
            line.setMachineOption("type", type)
        }
        if !line.has("name") { line.add("name", name) }
        let (shared, note) = Self.shareRAM(in: &line, bytes: ramBytes, place: place, evenChosen: owningMemory)
        line.add("qmp", "unix:\(qmp.replacing(",", with: ",,")),server=on,wait=off")
        if case .incoming = purpose {
            line.add("incoming", "defer")
            line.add("S")
        }
        command = line.command
        launcherCount = line.launcher.count
        sharesRAM = shared
        notes = note.map { [$0] } ?? []
    }

    /// `sun_path` without its NUL.
    static let socketPathBytesMax = 107

    private static func refuse(in line: QemuCommandLine) throws(Problem) {
        if line.has("daemonize") {
            throw Problem(
                "daemonize-refused", "QEMU with -daemonize would leave the agent that watches it.",
                advice: "Leave -daemonize out: the agent runs QEMU in the background anyway.")
        }
        if line.has("incoming") {
            throw Problem(
                "incoming-refused", "A VM that waits for its memory (-incoming) cannot be run.",
                advice: "Leave -incoming out; `apus migrate` on the other host starts the receiving QEMU.")
        }
    }

    /// Makes guest RAM a shared file under the machine's default id, so that it agrees with a peer started by plain
    /// `-m` and the agent can install pages itself. Returns whether it did, and why not.
    private static func shareRAM(
        in line: inout QemuCommandLine, bytes: UInt64, place: Place, evenChosen: Bool
    ) -> (shared: Bool, note: String?) {
        if line.choosesMemory {
            guard evenChosen, place.ramRoomBytes >= bytes else { return (false, nil) }
            return (line.shareMemory(in: place.ramDirectory), nil)
        }
        guard let id = place.defaultRAMID else {
            return (false, "Guest RAM stays private to QEMU: this machine type takes no memory backend.")
        }
        guard place.ramRoomBytes >= bytes else {
            return (
                false,
                "Guest RAM stays private to QEMU: \(place.ramDirectory) has room for \(place.ramRoomBytes >> 20) MiB, "
                    + "the VM has \(bytes >> 20) MiB."
            )
        }
        var backend = KeyValueList("memory-backend-file", implied: "qom-type")
        backend["id"] = id
        backend["size"] = String(bytes)
        backend["mem-path"] = place.ramDirectory
        backend["share"] = "on"
        if !line.has("mem-prealloc") { backend["prealloc"] = "off" }
        line.add("object", backend.text(implied: "qom-type"))
        line.setMachineOption("memory-backend", id)
        return (true, nil)
    }
}
