internal import Foundation

/// KVM where it boots the proving guest, else TCG. The device file alone says nothing: nested machines offer one that
/// starts no guest.
public enum Accelerator: String, Sendable, Codable {
    case kvm, tcg

    /// Tries, once per boot of this machine and QEMU program; the answer is kept in the cache folder.
    public static func probe(qemu: String, image: GuestImage) async -> Accelerator {
        guard FileManager.default.isWritableFile(atPath: "/dev/kvm") else { return .tcg }
        let boot = (try? String(contentsOfFile: "/proc/sys/kernel/random/boot_id", encoding: .utf8)) ?? ""
        let key = "\(boot.trimmingCharacters(in: .newlines)) \(qemu)"
        let note = "\(labCache())/accelerator"
        let known = (try? String(contentsOfFile: note, encoding: .utf8)) ?? ""
        for line in known.split(separator: "\n") where line.hasPrefix(key + " ") {
            return Accelerator(rawValue: String(line.dropFirst(key.count + 1))) ?? .tcg
        }
        let found: Accelerator = await boots(qemu: qemu, image: image) ? .kvm : .tcg
        let lines = known.split(separator: "\n").filter { $0.hasPrefix(boot.prefix(36)) } + ["\(key) \(found.rawValue)"]
        try? (lines.joined(separator: "\n") + "\n").write(toFile: note, atomically: true, encoding: .utf8)
        return found
    }

    /// A guest under KVM gives its first tick in about a second; one that cannot boot gives none for ever.
    private static func boots(qemu: String, image: GuestImage) async -> Bool {
        var probe = Workload(name: "probe", pattern: .idle)
        probe.regionMiB = 1
        probe.memoryKiB = 128 * 1024 + 8
        let workload = probe
        let started = try? await Lab.with { lab in
            let words = workload.arguments(run: lab.folder, image: image, accelerator: .kvm)
            _ = try await lab.start("probe", [qemu] + words)
            let console = try await Console.connect(path: lab.path("console.sock"), seconds: 3)
            _ = try? await wait(for: "a tick under KVM", seconds: 6) { console.trace.ticks.first }
            await console.close()
            return !console.trace.ticks.isEmpty
        }
        return started ?? false
    }
}
