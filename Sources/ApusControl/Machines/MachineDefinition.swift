public import ApusAPI

/// What a VM is, apart from where it runs: enough for another host to start a QEMU that can receive it.
public struct MachineDefinition: Codable, Sendable, Equatable {
    public var name: String
    /// QEMU and its arguments as the operator gave them; `{run}` stands for the VM's run directory on the host it is on.
    public var command: [String]
    /// Where relative paths in `command` start.
    public var workingDirectory: String?
    /// Versioned, for example `pc-q35-7.2`: an alias such as `q35` means another machine in another QEMU.
    public var machineType: String
    /// Guest RAM without hot-plugged memory, in bytes.
    public var ramBytes: UInt64
    public var vcpus: Int
    /// The QEMU that ran it when this was written, for example `7.2.22`.
    public var qemuVersion: String
    public var origin: MachineOrigin

    public init(
        name: String, command: [String], workingDirectory: String? = nil, machineType: String, ramBytes: UInt64,
        vcpus: Int, qemuVersion: String, origin: MachineOrigin
    ) {
        self.name = name
        self.command = command
        self.workingDirectory = workingDirectory
        self.machineType = machineType
        self.ramBytes = ramBytes
        self.vcpus = vcpus
        self.qemuVersion = qemuVersion
        self.origin = origin
    }

    public static let runPlaceholder = "{run}"

    /// Names become directory names and parts of socket paths.
    ///
    /// - Throws: `Problem` `name-invalid`.
    public static func check(name: String) throws(Problem) {
        let allowed = name.utf8.allSatisfy { byte in
            switch byte {
            case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
                UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "."), UInt8(ascii: "_"), UInt8(ascii: "-"):
                true
            default: false
            }
        }
        let first = name.utf8.first.map { $0 != UInt8(ascii: ".") && $0 != UInt8(ascii: "-") } ?? false
        guard allowed, first, name.utf8.count <= nameBytesMax else {
            throw Problem(
                "name-invalid", "\"\(name)\" cannot be a VM's name.",
                advice: "Use 1 to \(nameBytesMax) of a-z A-Z 0-9 . _ - and begin with a letter, digit or _.")
        }
    }

    public static let nameBytesMax = 48
}
