internal import Glibc

/// Memory of another process that is to be in a file: what is not yet, what it is mapped like, or why it must stay.
struct RebasedMemory {
    /// For `madvise`, so that the file's mapping behaves as the memory did.
    let advices: [Int32]
    /// Offsets of the pieces that are private.
    let due: [UInt64]
    /// The number of the file, inside the process, that the other pieces are in.
    let descriptor: Int32?

    /// - Throws: `InjectionError.unsuited` with the reason.
    static func examine(pid: Int32, area: WriteTracker.Area) throws(InjectionError) -> RebasedMemory {
        guard let smaps = try? ProcFile.read("/proc/\(pid)/smaps"), !smaps.isEmpty else {
            throw .processGone(pid: pid)
        }
        let mappings = Mapping.parse(smaps).filter { $0.end > area.address && $0.start < area.address + area.byteCount }
        guard let first = mappings.first, let last = mappings.last, first.start <= area.address,
            last.end >= area.address + area.byteCount,
            zip(mappings, mappings.dropFirst()).allSatisfy({ $0.end == $1.start })
        else { throw .unsuited("There is no memory at \(String(area.address, radix: 16)) of process \(pid)") }
        let open = mappings.filter { !$0.isExchanged }
        for mapping in open {
            if let why = mapping.objection { throw .unsuited(why) }
        }
        if let why = holder(of: pid) ?? policy(of: pid, open) { throw .unsuited(why) }
        try checkRoom(for: min(MemoryRebase.pieceBytes, open.reduce(0) { $0 + $1.residentBytes }))

        let done = mappings.filter(\.isExchanged)
        guard Set(done.map { $0.start &- $0.offset }).isSubset(of: [area.address]), Set(done.map(\.inode)).count <= 1
        else { throw .unsuited("The guest's RAM is partly in files that do not belong together") }
        let offsets = stride(from: 0, to: area.byteCount, by: Int(MemoryRebase.pieceBytes))
        let due = offsets.filter { offset in open.contains { $0.contains(area.address + offset) } }
        return RebasedMemory(
            advices: (open.first ?? first).advices, due: due,
            descriptor: try done.first.map { mapping throws(InjectionError) in
                try Foreign.memoryFile(of: pid, inode: mapping.inode)
            })
    }

    /// One mapping of `smaps`.
    struct Mapping {
        let start: UInt64
        let end: UInt64
        let mode: Substring
        let offset: UInt64
        let inode: UInt64
        let path: Substring
        var residentBytes: UInt64 = 0
        var flags: [Substring] = []

        func contains(_ address: UInt64) -> Bool { start <= address && address < end }
        /// By us, before.
        var isExchanged: Bool { path.hasPrefix(Foreign.memoryFilePrefix) }
        private var isAnonymous: Bool { inode == 0 && (path.isEmpty || path.hasPrefix("[anon")) }

        var objection: String? {
            if mode.last != "p" { return "The guest's RAM is shared already" }
            if !isAnonymous { return "The guest's RAM is a private mapping of a file, which cannot be replaced" }
            if flags.contains("ht") { return "The guest's RAM is in huge pages (hugetlbfs), which cannot be replaced" }
            if flags.contains("lo") {
                return "The guest's RAM is locked (-overcommit mem-lock=on), and a new file would not be"
            }
            if flags.contains("pf") || flags.contains("io") { return "The guest's RAM is a device's memory" }
            return mode.hasPrefix("rw") ? nil : "The guest's RAM cannot be written by QEMU itself"
        }

        /// MADV_MERGEABLE is not among them: the kernel merges private pages only.
        var advices: [Int32] {
            let known: [(Substring, Int32)] = [
                ("dc", MADV_DONTFORK), ("dd", MADV_DONTDUMP), ("hg", MADV_HUGEPAGE), ("nh", MADV_NOHUGEPAGE),
            ]
            return known.filter { flags.contains($0.0) }.map(\.1)
        }

        //   7f2a40000000-7f2a60000000 rw-p 00000000 00:00 0
        //   Rss:              524296 kB
        //   VmFlags: rd wr mr mw me dc ac sd hg mg
        static func parse(_ text: String) -> [Mapping] {
            var mappings: [Mapping] = []
            for line in text.split(separator: "\n") {
                let words = line.split(separator: " ")
                if words[0].last != ":" {
                    let bounds = words[0].split(separator: "-").compactMap { UInt64($0, radix: 16) }
                    guard bounds.count == 2, words.count >= 5, let offset = UInt64(words[2], radix: 16),
                        let inode = UInt64(words[4])
                    else { continue }
                    mappings.append(
                        Mapping(
                            start: bounds[0], end: bounds[1], mode: words[1], offset: offset, inode: inode,
                            path: words.count > 5 ? words[5] : ""))
                } else if !mappings.isEmpty {
                    switch words[0] {
                    case "Rss:": mappings[mappings.count - 1].residentBytes = (UInt64(words[1]) ?? 0) << 10
                    case "VmFlags:": mappings[mappings.count - 1].flags = Array(words.dropFirst())
                    case _: continue
                    }
                }
            }
            return mappings
        }
    }

    /// Who has the physical pages themselves: a new file would not reach it.
    private static func holder(of pid: Int32) -> String? {
        let holders = [
            ("/dev/vfio", "a device given to the guest (VFIO)"),
            ("anon_inode:[vfio", "a device given to the guest (VFIO)"),
            ("/dev/iommu", "a device given to the guest (IOMMUFD)"), ("/dev/vhost-vdpa", "a vDPA device"),
            ("/dev/infiniband", "an RDMA device"), ("/dev/sev", "an encrypted guest (SEV)"),
            ("anon_inode:[kvm-gmem]", "an encrypted guest"),
        ]
        for number in (try? ProcFile.numbers(in: "/proc/\(pid)/fd")) ?? [] {
            guard let link = ProcFile.link("/proc/\(pid)/fd/\(number)") else { continue }
            if let holder = holders.first(where: { link.hasPrefix($0.0) }) {
                return "The guest's RAM is held by \(holder.1), and cannot be replaced under it"
            }
        }
        return nil
    }

    /// `7f2a40000000 bind:0 anon=…`: memory bound to NUMA nodes.
    private static func policy(of pid: Int32, _ mappings: [Mapping]) -> String? {
        guard let text = try? ProcFile.read("/proc/\(pid)/numa_maps") else { return nil }
        let starts = mappings.map { String($0.start, radix: 16) }
        for line in text.split(separator: "\n") {
            let words = line.split(separator: " ", maxSplits: 2)
            guard words.count > 1, starts.contains(where: { $0 == words[0] }), words[1] != "default" else { continue }
            return "The guest's RAM is bound to NUMA nodes (\(words[1])), and a new file would not be"
        }
        return nil
    }

    /// For some milliseconds, both the old memory and the file are there.
    private static func checkRoom(for bytes: UInt64) throws(InjectionError) {
        guard let info = try? ProcFile.read("/proc/meminfo"),
            let kib = ProcFile.field("MemAvailable", of: info).flatMap({ UInt64($0.prefix { $0.isNumber }) })
        else { return }
        let needed = bytes + bytes / 16
        guard kib << 10 < needed else { return }
        throw .unsuited(
            "The guest's RAM must be there twice for a moment: \(needed >> 20) MiB more are needed, "
                + "and \(kib >> 10) MiB are available")
    }
}
