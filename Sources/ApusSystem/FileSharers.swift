/// Who has a file in its memory.
public enum FileSharers {
    /// A process that writes to one of the files through a shared mapping. Reads the memory maps of all processes, up to
    /// 0.1 ms each.
    ///
    /// - Parameter known: processes that may.
    /// - Returns: its pid and name; nil: there is none that this process may look into.
    public static func writer(of files: [FileIdentity], besides known: Set<Int32>) -> (pid: Int32, name: String)? {
        //   7fb6f1ffd000-7fb6f7fff000 rw-s 00000000 00:1b 11      /dev/shm/…
        let words = files.map { file in
            [Array("\(hex(file.deviceMajor)):\(hex(file.deviceMinor))".utf8), Array("\(file.inode)".utf8)]
        }
        for pid in (try? ProcFile.numbers(in: "/proc")) ?? [] where !known.contains(pid) {
            guard let maps = try? ProcFile.bytes("/proc/\(pid)/maps"), words.contains(where: { writes($0, in: maps) })
            else { continue }
            let name = (try? ProcFile.read("/proc/\(pid)/comm")) ?? ""
            return (pid, String(name.prefix { $0 != "\n" }))
        }
        return nil
    }

    private static func hex(_ number: UInt64) -> String { (number < 16 ? "0" : "") + String(number, radix: 16) }

    /// One of the lines is of this file, and of memory that is writable and shared.
    private static func writes(_ file: [[UInt8]], in maps: [UInt8]) -> Bool {
        var rest = maps[...]
        while let end = rest.firstIndex(of: UInt8(ascii: "\n")) {
            let line = rest[..<end]
            rest = rest[(end + 1)...]
            guard let mode = line.firstIndex(of: UInt8(ascii: " ")), mode + 4 < end,
                line[mode + 2] == UInt8(ascii: "w"), line[mode + 4] == UInt8(ascii: "s")
            else { continue }
            if line.split(separator: UInt8(ascii: " "), maxSplits: 5).dropFirst(3).prefix(2).elementsEqual(
                file, by: { $0.elementsEqual($1) })
            {
                return true
            }
        }
        return false
    }
}
