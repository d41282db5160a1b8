public import ApusSystem

/// Which pages of a real guest were used first, and when: once before a moment and once from it on, as if the guest had moved
/// then.
///
/// ```
///   apus-trace 1 zipf 65538          workload, pages of its RAM
///   before 5 1200 3x4 17             look at 5 ms: page 1200, four pages from 1203 on, page 1224
///   after 5 …                        gaps to the end of the run before
/// ```
public struct UseTrace: Sendable {
    struct Epoch: Sendable {
        let ms: Int
        let runs: [(page: UInt64, count: UInt64)]
    }
    let workload: String
    let pages: UInt64
    private(set) var before: [Epoch] = []
    private(set) var after: [Epoch] = []

    private static let lookMs = 5

    /// Boots the guest of a workload under a QEMU without any agent, and looks.
    public static func record(
        _ workload: Workload, beforeMs: Int, afterMs: Int, qemu: String, image: GuestImage, accelerator: Accelerator
    ) async throws -> UseTrace {
        try await Lab.with { lab in
            var workload = workload
            workload.ram = .file
            let words = workload.arguments(run: lab.folder, image: image, accelerator: accelerator)
            let process = try await lab.start("qemu", [qemu] + words)
            let console = try await Console.connect(path: lab.path("console.sock"))
            lab.later("console") { await console.close() }
            try await console.verdicts(1, seconds: 90)
            return try await watch(process.pid, workload, beforeMs: beforeMs, afterMs: afterMs, in: lab)
        }
    }

    /// Looks at a QEMU that has its RAM in a shared file.
    ///
    /// - Parameter start: called when all is ready; the guest may stand still until then.
    static func watch(
        _ pid: Int32, _ workload: Workload, beforeMs: Int, afterMs: Int, in lab: Lab,
        start: () async throws -> Void = {}
    ) async throws -> UseTrace {
        let bytes = UInt64(workload.memoryKiB) << 10
        guard let area = try WriteTracker.Area.mapping(of: pid, byteCount: bytes) else {
            throw LabError.notEnough(what: "shared memory in process \(pid)")
        }
        let tracker = try WriteTracker.attach(pid: pid, areas: [area], journal: lab.path("journal"))
        try await start()
        var trace = UseTrace(workload: workload.name, pages: bytes / 4096)
        trace.before = try await look(tracker, forMs: beforeMs)
        trace.after = try await look(tracker, forMs: afterMs)
        try tracker.detach()
        return trace
    }

    /// What was used after the moment, in this order, as an agent takes it: `FIRST COUNT`, a line for each run.
    var pushOrder: String {
        after.flatMap(\.runs).map { "\($0.page) \($0.count)\n" }.joined()
    }

    private static func look(_ tracker: WriteTracker, forMs: Int) async throws -> [Epoch] {
        try tracker.forgetUse()
        let started = Instant.now()
        var seen: Set<UInt64> = []
        var epochs: [Epoch] = []
        for due in stride(from: lookMs, through: forMs, by: lookMs) {
            try await ContinuousClock().sleep(for: .milliseconds(max(0, due - Int(Instant.now().ms(since: started)))))
            var runs: [(page: UInt64, count: UInt64)] = []
            try tracker.eachUsed { _, offset, byteCount in
                for page in offset / 4096..<(offset + byteCount) / 4096 where seen.insert(page).inserted {
                    if let last = runs.last, last.page + last.count == page {
                        runs[runs.count - 1].count += 1
                    } else {
                        runs.append((page, 1))
                    }
                }
            }
            if !runs.isEmpty { epochs.append(Epoch(ms: Int(Instant.now().ms(since: started)), runs: runs)) }
        }
        return epochs
    }

    public var text: String {
        let lines = [("before", before), ("after", after)].flatMap { name, epochs in
            epochs.map { "\(name) \($0.ms) " + Self.gaps($0.runs) }
        }
        return (["apus-trace 1 \(workload) \(pages)"] + lines).joined(separator: "\n") + "\n"
    }

    private static func gaps(_ runs: [(page: UInt64, count: UInt64)]) -> String {
        var end: UInt64 = 0
        return runs.map { run in
            defer { end = run.page + run.count }
            return "\(run.page - end)" + (run.count > 1 ? "x\(run.count)" : "")
        }.joined(separator: " ")
    }
}

extension WriteTracker.Area {
    /// The mapping of a process that has exactly this length; nil: it has none.
    public static func mapping(of pid: Int32, byteCount: UInt64) throws(SystemError) -> WriteTracker.Area? {
        for line in try ProcFile.read("/proc/\(pid)/maps").split(separator: "\n") {
            let bounds = line.prefix { $0 != " " }.split(separator: "-").compactMap { UInt64($0, radix: 16) }
            if bounds.count == 2, bounds[1] - bounds[0] == byteCount {
                return WriteTracker.Area(address: bounds[0], byteCount: byteCount)
            }
        }
        return nil
    }
}
