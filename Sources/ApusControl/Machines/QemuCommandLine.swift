public import ApusAPI
import Foundation

/// A QEMU command as the parts that QEMU itself sees: options with and without values, and disk images.
///
///     ip netns exec a qemu-system-x86_64 -m 512 --nodefaults disk.img
///     └──────────── launcher ──────────┘ └option┘ └─option─┘ └image┘
///
/// Reading and writing again gives the same command, but for `--x`, which becomes `-x`.
public struct QemuCommandLine: Sendable, Equatable {
    public enum Argument: Sendable, Equatable {
        /// `name` without dashes.
        case option(name: String, value: String?)
        /// A bare word: QEMU takes it as the first disk.
        case image(String)
    }

    /// Everything up to and with the QEMU binary: usually one word, more for `ip netns exec …`, `taskset …`.
    public var launcher: [String]
    public var arguments: [Argument]

    /// - Throws: `Problem` `command-empty`, `command-malformed`.
    public init(_ command: [String]) throws(Problem) {
        guard let first = command.first, !first.isEmpty else {
            throw Problem(
                "command-empty", "The QEMU command is empty.",
                advice: "Give it after --: -- qemu-system-x86_64 -m 1024 …")
        }
        let binary = Self.looksLikeQemu(first) ? 0 : command.firstIndex(where: Self.looksLikeQemu) ?? 0
        launcher = Array(command[...binary])
        arguments = []
        var words = command[(binary + 1)...]
        while let word = words.popFirst() {
            guard word.hasPrefix("-") else {
                arguments.append(.image(word))
                continue
            }
            let name = String(word.drop { $0 == "-" })
            if Self.withoutValue.contains(name) {
                arguments.append(.option(name: name, value: nil))
            } else if let value = words.popFirst() {
                arguments.append(.option(name: name, value: value))
            } else {
                throw Problem("command-malformed", "QEMU's option -\(name) is last and has no value.")
            }
        }
    }

    /// The whole command, launcher first.
    public var command: [String] {
        launcher
            + arguments.flatMap { argument in
                switch argument {
                case .option(let name, let value): ["-\(name)"] + (value.map { [$0] } ?? [])
                case .image(let path): [path]
                }
            }
    }

    public func values(of names: String...) -> [String] {
        arguments.compactMap { argument in
            guard case .option(let name, let value) = argument, names.contains(name) else { return nil }
            return value ?? ""
        }
    }

    public func has(_ names: String...) -> Bool {
        arguments.contains { argument in
            guard case .option(let name, _) = argument else { return false }
            return names.contains(name)
        }
    }

    public mutating func remove(_ names: String...) {
        arguments.removeAll { argument in
            guard case .option(let name, _) = argument else { return false }
            return names.contains(name)
        }
    }

    public mutating func add(_ name: String, _ value: String? = nil) {
        arguments.append(.option(name: name, value: value))
    }

    private static func looksLikeQemu(_ word: String) -> Bool {
        let name = word.split(separator: "/").last.map(String.init) ?? word
        return name.hasPrefix("qemu-system-") || name == "qemu-kvm" || name == "qemu"
    }

    /// The options that take no value: QEMU's own table, asked of 7.2 and 10.0; every other option takes one.
    private static let withoutValue: Set<String> = [
        "S", "s", "h", "help", "version", "daemonize", "snapshot", "nographic", "nodefaults", "no-user-config",
        "no-reboot", "no-shutdown", "no-acpi", "no-hpet", "no-fd-bootchk", "enable-kvm", "enable-sync-profile",
        "full-screen", "portrait", "preconfig", "only-migratable", "mem-prealloc", "usb", "singlestep",
        "one-insn-per-tb", "semihosting", "old-param", "win2k-hack", "async-teardown", "audio-help", "jitdump",
        "perfmap", "xen-attach", "xen-domid-restrict",
    ]
}

extension QemuCommandLine {
    /// `-machine` and `-M`, as QEMU merges them: the last one wins for each key.
    public var machineOptions: KeyValueList {
        var merged = KeyValueList(pairs: [])
        for value in values(of: "machine", "M") {
            for pair in KeyValueList(value, implied: "type").pairs { merged[pair.key] = pair.value ?? "on" }
        }
        return merged
    }

    /// The machine type as written, for example `q35`; nil: QEMU's default.
    public var machineType: String? { machineOptions["type"] }

    /// Sets one key of the machine, in the first `-machine`, and removes it from the others.
    public mutating func setMachineOption(_ key: String, _ value: String) {
        var placed = false
        for index in arguments.indices {
            guard case .option(let name, let text?) = arguments[index], name == "machine" || name == "M" else {
                continue
            }
            var list = KeyValueList(text, implied: "type")
            list[key] = placed ? nil : value
            placed = true
            arguments[index] = .option(name: name, value: list.text(implied: "type"))
        }
        if !placed { add("machine", KeyValueList(pairs: [(key, value)]).text(implied: "type")) }
        // A second -machine that held nothing else would now be empty, which QEMU refuses.
        arguments.removeAll { $0 == .option(name: "machine", value: "") || $0 == .option(name: "M", value: "") }
    }

    /// Guest RAM in bytes as QEMU takes `-m`; nil without `-m`.
    ///
    /// - Throws: `Problem` `memory-malformed`.
    public func memoryBytes() throws(Problem) -> UInt64? {
        var size: UInt64?
        for value in values(of: "m") {
            guard let text = KeyValueList(value, implied: "size")["size"] else { continue }
            guard let bytes = QemuSize.memoryBytes(text) else {
                throw Problem("memory-malformed", "QEMU would not understand -m \(value).")
            }
            size = bytes
        }
        return size
    }

    /// Whether the command itself says where guest RAM comes from.
    public var choosesMemory: Bool {
        if has("numa", "mem-path", "readconfig") { return true }
        if machineOptions.pairs.contains(where: { $0.key == "memory-backend" || $0.key.hasPrefix("memory.") }) {
            return true
        }
        return values(of: "object").contains { Self.objectType($0)?.hasPrefix("memory-backend-") == true }
    }

    /// Puts the memory of each private backend (`memory-backend-ram`) into a shared file; what else the backend is told stays.
    ///
    /// - Returns: whether there was one.
    public mutating func shareMemory(in directory: String) -> Bool {
        var isShared = false
        for index in arguments.indices {
            guard case .option("object", let value?) = arguments[index],
                Self.objectType(value) == "memory-backend-ram", let shared = Self.shared(value, in: directory)
            else { continue }
            arguments[index] = .option(name: "object", value: shared)
            isShared = true
        }
        return isShared
    }

    private static func shared(_ value: String, in directory: String) -> String? {
        guard value.hasPrefix("{") else {
            var backend = KeyValueList(value, implied: "qom-type")
            backend["qom-type"] = "memory-backend-file"
            backend["mem-path"] = directory
            backend["share"] = "on"
            return backend.text(implied: "qom-type")
        }
        guard var backend = try? JSONSerialization.jsonObject(with: Data(value.utf8)) as? [String: Any] else {
            return nil
        }
        backend["qom-type"] = "memory-backend-file"
        backend["mem-path"] = directory
        backend["share"] = true
        return (try? JSONSerialization.data(withJSONObject: backend, options: [.sortedKeys, .withoutEscapingSlashes]))
            .map { String(decoding: $0, as: UTF8.self) }
    }

    /// `-object` takes `TYPE,…` or JSON.
    static func objectType(_ value: String) -> String? {
        guard value.hasPrefix("{") else { return KeyValueList(value, implied: "qom-type")["qom-type"] }
        struct Typed: Decodable {
            let type: String
            private enum CodingKeys: String, CodingKey { case type = "qom-type" }
        }
        return try? JSONDecoder().decode(Typed.self, from: Data(value.utf8)).type
    }

    /// Removes the monitor that listens at `path`: `-qmp unix:PATH,…`, or `-chardev socket,path=PATH` and its `-mon`.
    public mutating func removeMonitor(at path: String) {
        var chardevs: Set<String> = []
        for value in values(of: "chardev") {
            let list = KeyValueList(value, implied: "backend")
            if list["backend"] == "socket", list["path"] == path, let id = list["id"] { chardevs.insert(id) }
        }
        arguments.removeAll { argument in
            guard case .option(let name, let value?) = argument else { return false }
            switch name {
            case "qmp", "qmp-pretty":
                let target = KeyValueList(value, implied: "dev")["dev"] ?? ""
                return target == "unix:\(path)" || chardevs.contains { target == "chardev:\($0)" || target == $0 }
            case "mon": return KeyValueList(value, implied: "chardev")["chardev"].map(chardevs.contains) == true
            case "chardev": return KeyValueList(value, implied: "backend")["id"].map(chardevs.contains) == true
            default: return false
            }
        }
    }
}
