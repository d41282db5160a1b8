internal import Glibc

/// A point on the kernel's monotonic clock, in nanoseconds.
public struct Instant: Comparable, Hashable, Sendable {
    public let ns: UInt64
    public init(ns: UInt64) { self.ns = ns }

    public static func now() -> Instant { Instant(ns: read(CLOCK_MONOTONIC)) }

    /// Milliseconds from `earlier` to this instant; negative when it lies after it.
    public func ms(since earlier: Instant) -> Double { Double(Int64(bitPattern: ns &- earlier.ns)) / 1e6 }
    public func adding(ms: Double) -> Instant { Instant(ns: ns &+ UInt64(max(0, ms) * 1e6)) }
    public static func < (a: Instant, b: Instant) -> Bool { a.ns < b.ns }

    /// CPU time that the calling thread has used, in nanoseconds.
    public static func threadCPUNs() -> UInt64 { read(CLOCK_THREAD_CPUTIME_ID) }
    /// Time that the calling thread was ready to run and had no CPU, in nanoseconds; 0 where the kernel does not count it.
    /// Reads a small file: not for each page.
    public static func threadQueuedNs() -> UInt64 {
        guard let text = try? ProcFile.read("/proc/thread-self/schedstat") else { return 0 }
        let words = text.split { !$0.isNumber }
        return words.count > 1 ? UInt64(words[1]) ?? 0 : 0
    }
    /// CPU time that the whole process has used, in nanoseconds.
    public static func processCPUNs() -> UInt64 { read(CLOCK_PROCESS_CPUTIME_ID) }

    private static func read(_ clock: clockid_t) -> UInt64 {
        var time = timespec()
        _ = unsafe clock_gettime(clock, &time)
        return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
    }
}
