internal import CApus

/// Descriptors inside another process that are, or may be, ours.
enum Foreign {
    /// Numbers of all of them.
    static func userfaultfds(of pid: Int32) -> [Int32] {
        let all = (try? ProcFile.numbers(in: "/proc/\(pid)/fd")) ?? []
        return all.filter { ProcFile.link("/proc/\(pid)/fd/\($0)") == "anon_inode:[userfaultfd]" }
    }

    /// What a journal tells of, as far as it is there. Without a number, whatever was not there before and tracks
    /// writes as we do, or was never initialised: QEMU's own is for something else, and is at once.
    static func left(by journal: InjectionJournal) -> [Int32] {
        userfaultfds(of: journal.pid).filter { number in
            if let descriptor = journal.descriptor { return number == descriptor }
            return !journal.known.contains(number) && isOursOrNobodys(number, journal.pid)
        }
    }

    private static func isOursOrNobodys(_ number: Int32, _ pid: Int32) -> Bool {
        // API:	aa:<features, hexadecimal>:<all features>
        guard let info = try? ProcFile.read("/proc/\(pid)/fdinfo/\(number)"),
            let words = ProcFile.field("API", of: info)?.split(separator: ":"), words.count == 3,
            let features = UInt64(words[1], radix: 16)
        else { return false }
        return features == 0 || capus_fault_is_tracking(features) != 0
    }

    /// How a memory file made for ``MemoryRebase`` is called in `/proc`.
    static let memoryFilePrefix = "/memfd:\(CAPUS_MEMORY_NAME)"

    /// Numbers of such files that no memory of the process is in.
    static func unmappedMemoryFiles(of pid: Int32) -> [Int32] {
        let files = memoryFiles(of: pid)
        guard !files.isEmpty, let maps = try? ProcFile.read("/proc/\(pid)/maps") else { return [] }
        let mapped = maps.split(separator: "\n").filter { $0.contains(memoryFilePrefix) }
            .map { $0.split(separator: " ")[4] }
        return files.filter { !mapped.contains("\($0.inode)") }.map(\.number)
    }

    /// The number of the one with this inode.
    static func memoryFile(of pid: Int32, inode: UInt64) throws(InjectionError) -> Int32 {
        if let file = memoryFiles(of: pid).first(where: { $0.inode == inode }) { return file.number }
        throw .unsuited("The guest's RAM is in a file that QEMU has closed")
    }

    private static func memoryFiles(of pid: Int32) -> [(number: Int32, inode: UInt64)] {
        ((try? ProcFile.numbers(in: "/proc/\(pid)/fd")) ?? []).compactMap { number in
            let path = "/proc/\(pid)/fd/\(number)"
            guard ProcFile.link(path)?.hasPrefix(memoryFilePrefix) == true,
                let file = try? FileIdentity.of(path: path)
            else { return nil }
            return (number, file.inode)
        }
    }
}
