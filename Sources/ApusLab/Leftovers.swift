internal import Foundation
internal import Glibc

/// What an experiment left behind, found by the name of its scratch folder: every program of an experiment has a path in
/// that folder on its command line, and the folder's name holds the id of the process that made it and a number of its own.
enum Leftovers {
    struct Process: Sendable {
        let pid: Int32
        let command: String
    }

    static func processes(naming folder: String) -> [Process] {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: "/proc")) ?? []
        return names.compactMap(Int32.init).filter { $0 != getpid() }.compactMap { pid in
            guard let line = FileManager.default.contents(atPath: "/proc/\(pid)/cmdline") else { return nil }
            let words = String(decoding: line, as: UTF8.self).replacing("\0", with: " ")
            // `/tmp/apus-lab.12.1` must not find `/tmp/apus-lab.12.10`.
            return words.contains("\(folder)/") ? Process(pid: pid, command: words) : nil
        }
    }

    /// Ends them, kindly first.
    static func end(_ processes: [Process], naming folder: String) async {
        for process in processes { kill(process.pid, SIGTERM) }
        let gone: Bool? = try? await wait(for: "leftovers to end", seconds: 2, every: .milliseconds(20)) {
            self.processes(naming: folder).isEmpty ? true : nil
        }
        if gone == nil { for process in self.processes(naming: folder) { kill(process.pid, SIGKILL) } }
    }

    /// Clears away what laboratories left whose process is gone, killed before it could.
    static func sweep() async {
        let temporary = "/tmp", prefix = "apus-lab."
        for name in (try? FileManager.default.contentsOfDirectory(atPath: temporary)) ?? [] where name.hasPrefix(prefix)
        {
            let parts = name.dropFirst(prefix.count).split(separator: ".")
            guard parts.count == 2, let owner = Int32(parts[0]), kill(owner, 0) != 0, errno == ESRCH else { continue }
            let folder = "\(temporary)/\(name)"
            await end(processes(naming: folder), naming: folder)
            for end in ["a", "b"]
            where FileManager.default.fileExists(atPath: "/run/netns/apus\(parts[0]).\(parts[1])\(end)") {
                _ = try? await command(["ip", "netns", "del", "apus\(parts[0]).\(parts[1])\(end)"])
            }
            try? FileManager.default.removeItem(atPath: folder)
        }
    }
}
