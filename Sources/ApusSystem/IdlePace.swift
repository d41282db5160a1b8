/// Keeps a thread out of the way where nice(2) does not reach: the scheduler weighs sessions and control groups first, and a
/// guest's vCPUs are in others than an agent's threads.
///
/// ```
///   a piece of work -- waited for a CPU? -- no --> the next one at once
///                              `-- yes: others want it --> sleep, so that a fiftieth of a CPU is taken
/// ```
public struct IdlePace: Sendable {
    /// Of a CPU, what is taken while others want it.
    public static let share = 0.02
    /// Waiting that is no sign of others, as a part of working.
    private static let quietShare = 0.1
    private var workedNs = Instant.threadCPUNs()
    private var waitedNs = Instant.threadQueuedNs()
    private let until: Instant?

    /// - Parameter until: from then on the work is due, whoever wants the CPU; nil: it is never.
    public init(until: Instant? = nil) { self.until = until }

    /// To be called by the thread itself after each piece of work of a millisecond or so.
    public mutating func giveWay() {
        if let until, Instant.now() >= until { return }
        let (worked, waited) = (Instant.threadCPUNs(), Instant.threadQueuedNs())
        let pauseMs = Self.pauseMs(workedNs: worked &- workedNs, waitedNs: waited &- waitedNs)
        if pauseMs > 0 { pause(ms: pauseMs) }
        // What it waits for when it wakes up is the next piece's.
        (workedNs, waitedNs) = (Instant.threadCPUNs(), waited)
    }

    /// How long to sleep after a piece of work that took and waited so long.
    public static func pauseMs(workedNs: UInt64, waitedNs: UInt64) -> Double {
        guard Double(waitedNs) > Double(workedNs) * quietShare else { return 0 }
        return min(Double(workedNs) / 1e6 * (1 / share - 1), pauseMsMax)
    }
    private static let pauseMsMax = 250.0
}
