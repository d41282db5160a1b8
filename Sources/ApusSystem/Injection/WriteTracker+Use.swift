internal import Glibc
internal import Synchronization

// Which pages a process uses, reads and writes alike.
//
//     forget   injected madvise(MADV_DONTNEED): the page tables' entries go, the pages stay in their file
//     use      whoever touches a page puts its entry back, without us, in about a microsecond
//     look     PAGEMAP_SCAN: what has an entry now has been used since
//
// Nothing is left behind in the process. That its memory is registered with a userfaultfd keeps the kernel from putting back
// entries of neighbours too.
extension WriteTracker {
    /// Makes all pages count as not used. What was written before is no longer told from what was not: for
    /// ``takeWritten(_:)`` all that follows is right, but a call right after this one must be thrown away.
    ///
    /// Each step stops a sleeping thread for as long as a few MiB take.
    /// - Throws: `InjectionError`; `.unsuited` when the memory is not shared, for then it would be lost.
    public func forgetUse() throws(InjectionError) {
        guard let maps = try? ProcFile.read("/proc/\(injector.pid)/maps"), !maps.isEmpty else {
            throw .processGone(pid: injector.pid)
        }
        let shared = Self.sharedRanges(maps)
        guard areas.allSatisfy({ area in shared.contains { $0.covers(area) } }) else {
            throw .unsuited("Memory of process \(injector.pid) is not in a shared file, and would be lost")
        }
        for area in areas {
            var at: UInt64 = 0
            while at < area.byteCount {
                let bytes = min(Self.forgottenAtOnce, area.byteCount - at)
                let piece = Area(address: area.address + at, byteCount: bytes)
                _ = try injector.call(.advise(piece, MADV_DONTNEED))
                at += bytes
            }
        }
    }
    private static let forgottenAtOnce: UInt64 = 64 << 20

    /// Calls `body` for each run of pages used since ``forgetUse()``, ascending.
    ///
    /// - Throws: `SystemError`; `ESRCH` when the process has gone.
    public func eachUsed(_ body: (_ area: Int, _ offset: UInt64, _ byteCount: UInt64) -> Void) throws(SystemError) {
        try scan.withLock { scan throws(SystemError) in
            for (index, area) in areas.enumerated() {
                try scan.each(.present, in: area) { body(index, $0 - area.address, $1) }
            }
        }
    }

    private static func sharedRanges(_ maps: String) -> [Area] {
        maps.split(separator: "\n").compactMap { line in
            // 7f2a40000000-7f2a60000000 rw-s 00000000 00:01 4711 /dev/shm/…
            let words = line.split(separator: " ", maxSplits: 2)
            let ends = words[0].split(separator: "-").compactMap { UInt64($0, radix: 16) }
            guard words.count == 3, words[1].hasSuffix("s"), ends.count == 2, ends[0] < ends[1] else { return nil }
            return Area(address: ends[0], byteCount: ends[1] - ends[0])
        }
    }
}

extension WriteTracker.Area {
    fileprivate func covers(_ other: WriteTracker.Area) -> Bool {
        address <= other.address && other.address + other.byteCount <= address + byteCount
    }
}
