// The workloads that comparisons know by name.

extension Workload {
    /// What a comparison measures unless told otherwise: one workload for each pattern that the small guest has.
    public static let standard: [Workload] = [
        Workload(name: "incompressible", pattern: .incompressible),
        Workload(name: "compressible", pattern: .compressible),
        Workload(name: "few", pattern: .few),
        readmostly, idle,
    ]

    /// Every name that `named` knows; `lines-N` stands for `lines-1` to `lines-64`.
    public static let names = others.map(\.name) + ["lines-N"]
    private static let others = standard + [idleCache, idleDisk, fewBytes, redis] + orders

    /// What a post-copy is compared by: 8,000 visits a second of 128 MiB, whose order is all that differs.
    public static let orders = [Pattern.scan, .strided, .zipf, .random, .phases].map { pattern in
        var workload = Workload(name: pattern.rawValue, pattern: pattern)
        workload.hotMiB = 128
        workload.pagesPerS = 8_000
        workload.checkShare = 5
        return workload
    }

    public static func named(_ name: String) -> Workload? {
        if name.hasPrefix("lines-") {
            guard let lines = Int(name.dropFirst("lines-".count)), (1...64).contains(lines) else { return nil }
            return changing(lines: lines)
        }
        return others.first { $0.name == name }
    }

    /// `lines-N`: 10,000 times a second one page of a hot 64 MiB changes one word in each of N lines of 64 bytes, and
    /// nothing else.
    public static func changing(lines: Int) -> Workload {
        var workload = Workload(name: "lines-\(lines)", pattern: .few)
        workload.hotMiB = 64
        workload.pagesPerS = 10_000
        workload.lines = lines
        workload.zeroPerMille = 0
        return workload
    }

    /// The least that a write can change.
    private static var fewBytes: Workload {
        var workload = changing(lines: 1)
        workload.name = "few-bytes"
        return workload
    }

    private static var idle: Workload {
        var workload = Workload(name: "idle", pattern: .idle)
        workload.pagesPerS = 0
        return workload
    }

    /// A guest after boot that has read its files once.
    private static var idleCache: Workload {
        var workload = idle
        workload.name = "idle-cache"
        workload.regionMiB = 64
        workload.pageCacheMiB = 300
        return workload
    }

    /// The same with next to nothing else in memory than what is on its disk.
    private static var idleDisk: Workload {
        var workload = idleCache
        workload.name = "idle-disk"
        workload.regionMiB = 4
        workload.hotMiB = 1
        return workload
    }

    private static var readmostly: Workload {
        var workload = Workload(name: "readmostly", pattern: .readmostly)
        workload.hotMiB = 4
        workload.pagesPerS = 100
        return workload
    }

    /// 65,536 values of 1 KiB, a quarter of them in use: 10,000 requests a second, one in ten a write.
    private static var redis: Workload {
        var workload = Workload(name: "redis", pattern: .redis)
        workload.regionMiB = 64
        workload.hotMiB = 16
        workload.pagesPerS = 10_000
        workload.checkShare = 40
        return workload
    }
}
