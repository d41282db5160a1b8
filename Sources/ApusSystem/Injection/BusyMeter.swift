/// How busy some threads of another process are: on a CPU or waiting for one, in share of the time.
///
/// A vCPU whose guest has nothing to do sleeps, under KVM and under TCG. Waiting counts because on a crowded host it would run.
public struct BusyMeter: Sendable {
    private let pid: Int32
    private let began: Instant
    private let busyNs: [Int32: UInt64]

    /// Shorter looks are told wrong by the kernel's ticks, at which it counts.
    public static let leastMs = 100.0

    /// From now on.
    public init(pid: Int32, threads: [Int32]) {
        self.pid = pid
        busyNs = Dictionary(
            threads.compactMap { thread in Self.busyNs(pid, thread).map { (thread, $0) } }, uniquingKeysWith: { $1 })
        began = .now()
    }

    /// Of the busiest thread, 0 to 1; nil: too early, or the kernel does not count it.
    public var share: Double? {
        let spanMs = Instant.now().ms(since: began)
        guard spanMs >= Self.leastMs else { return nil }
        let shares = busyNs.compactMap { thread, beforeNs in
            Self.busyNs(pid, thread).map { Double($0 - min(beforeNs, $0)) / 1e6 / spanMs }
        }
        return shares.max().map { min($0, 1) }
    }

    /// Nanoseconds on a CPU and waiting for one: the first two fields of schedstat; zeros where the kernel does not count them.
    private static func busyNs(_ pid: Int32, _ thread: Int32) -> UInt64? {
        guard let text = try? ProcFile.read("/proc/\(pid)/task/\(thread)/schedstat") else { return nil }
        let fields = text.split { !$0.isNumber }.compactMap { UInt64($0) }
        guard fields.count >= 2, fields[0] > 0 else { return nil }
        return fields[0] &+ fields[1]
    }
}
