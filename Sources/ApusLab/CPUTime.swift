internal import Foundation
internal import Glibc

/// CPU time of a process from /proc, in seconds.
public struct CPUTime: Sendable, Equatable {
    /// All threads, those that have ended too.
    public var process: Double
    /// The vCPU threads of a QEMU that was started with `debug-threads=on`.
    public var vcpus: Double
    /// What QEMU spent on anything but running the guest.
    public var besideGuest: Double { process - vcpus }

    func process(since earlier: CPUTime?) -> Double? { earlier.map { process - $0.process } }

    public static func of(pid: Int32) -> CPUTime? {
        guard let process = seconds(in: "/proc/\(pid)/stat") else { return nil }
        var vcpus = 0.0
        for thread in (try? FileManager.default.contentsOfDirectory(atPath: "/proc/\(pid)/task")) ?? [] {
            let folder = "/proc/\(pid)/task/\(thread)"
            guard let name = try? String(contentsOfFile: "\(folder)/comm", encoding: .utf8), name.hasPrefix("CPU ")
            else { continue }
            vcpus += seconds(in: "\(folder)/stat") ?? 0
        }
        return CPUTime(process: process, vcpus: vcpus)
    }

    private static func seconds(in path: String) -> Double? {
        // After the name, which may hold spaces, the 12th and 13th fields are user and system ticks.
        guard let text = try? String(contentsOfFile: path, encoding: .utf8), let end = text.lastIndex(of: ")")
        else { return nil }
        let fields = text[text.index(after: end)...].split(separator: " ")
        guard fields.count > 12, let user = Double(fields[11]), let system = Double(fields[12]) else { return nil }
        return (user + system) / Double(sysconf(Int32(_SC_CLK_TCK)))
    }
}
