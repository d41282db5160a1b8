import ApusAPI
import ApusSystem

/// How much memory this host could give to a VM now, in bytes.
enum HostMemory {
    /// `MemAvailable` of `/proc/meminfo`.
    static func available() -> UInt64? {
        (try? ProcFile.read("/proc/meminfo")).flatMap(available(meminfo:))
    }

    static func available(meminfo text: String) -> UInt64? {
        for line in text.split(separator: "\n") where line.hasPrefix("MemAvailable:") {
            return line.split(separator: " ").dropFirst().first.flatMap { UInt64($0) }.map { $0 << 10 }
        }
        return nil
    }

    /// - Parameter promised: bytes of VMs that are being received and do not yet occupy their memory.
    /// - Throws: `Problem` `memory-lacking`.
    static func check(vm: String, bytes: UInt64, promised: UInt64, available: UInt64? = available()) throws(Problem) {
        guard let available else { return }
        let free = available > promised ? available - promised : 0
        guard free < bytes else { return }
        let taken = promised > 0 ? " (\(promised >> 20) MiB are promised to VMs that are arriving)" : ""
        throw Problem(
            "memory-lacking", "\(vm) needs \(bytes >> 20) MiB of memory, this host has \(free >> 20) MiB\(taken).",
            advice: "Free memory on this host, or choose another one.")
    }
}
