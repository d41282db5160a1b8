public import ApusAPI

/// What one migration cost and did, whoever made it. Everything that compares peers reads this.
public struct Outcome: Sendable, Equatable, Codable {
    public var peer: String
    public var workload: String
    /// Bits per second of the link; nil: unshaped.
    public var rate: UInt64?
    /// What the link adds to the time of a round trip; nil: nothing.
    public var rttMs: Double?
    public var run = 1
    /// nil: the migration was made.
    public var failure: String?

    /// From the command to the source's word that it is done, the start of the destination QEMU included.
    public var totalMs: Double?
    /// The part of it until the destination QEMU was ready to receive.
    public var prepareMs: Double?
    /// From then on: what the network and the mover make of it.
    public var moveMs: Double? { totalMs.flatMap { total in prepareMs.map { total - $0 } } }
    /// What the mover itself reports.
    public var reportedDowntimeMs: Double?
    /// What that was made of; nil: the mover does not say.
    public var downtimeParts: [DowntimePart]?
    public var pause: GuestPause?
    /// Both directions, from the interface counters; nil without namespaces.
    public var wireBytes: UInt64?
    public var rounds: Int?
    /// Bytes that the mover put on the link after its first pass over all memory: what the guest's writing costs.
    public var bytesAfterRound1: UInt64?
    /// What was fetched after the switch; nil: nothing, or the mover does not say.
    public var pull: PullSummary?
    /// Of QEMU's own post-copy: pages that its destination has asked for.
    public var pageRequests: UInt64?
    /// From the guest's first tick at the destination until it works at 95 % of its speed before; nil: it has no work, or
    /// did not come to it while it was watched.
    public var recoveryMs: Double?
    /// Full checks by the guest that began after the switch, and pages it found wrong.
    public var checksAfter = 0
    /// Ticks the guest gave at the destination.
    public var ticksAfter = 0
    public var pagesWrong = 0
    /// The guest's work per second: page writes; of `redis` the server's answers. 0 for a guest without work. The pause
    /// itself is in none of them.
    public var speedBefore: Double?
    public var speedDuring: Double?
    public var speedAfter: Double?
    /// At the source, while it was recorded what the guest used; nil: it was not.
    public var speedRecording: Double?
    /// At the destination, while pages were missing there.
    public var speedPulling: Double?
    /// CPU seconds on each side: the agents and the two QEMUs without their vCPUs.
    public var agentCPUSource: Double?
    public var agentCPUDestination: Double?
    public var qemuCPUSource: Double?
    public var qemuCPUDestination: Double?
    /// What was foretold of it.
    public var forecast: ForecastRecord?

    public init(peer: String, workload: String, rate: UInt64?) {
        self.peer = peer
        self.workload = workload
        self.rate = rate
    }

    /// The same guest on the same link.
    func isComparable(to other: Outcome) -> Bool {
        workload == other.workload && rate == other.rate && rttMs == other.rttMs
    }

    /// For how long every peer lets the guest run before the command; its speed before is that of this time.
    static let settling = Duration.seconds(2)

    /// Fills in what the two consoles tell.
    ///
    /// - Parameter asked: when the command was given.
    /// - Parameter moving: when the destination QEMU was ready.
    /// - Parameter ended: when the source said that it was done.
    /// - Parameter settled: until when the guest ran undisturbed; nil: until `asked`.
    public mutating func take(
        source: ConsoleTrace, destination: ConsoleTrace, settled: Moment? = nil, asked: Moment, moving: Moment,
        ended: Moment
    ) {
        var pause = GuestPause.measure(source: source, destination: destination, started: asked)
        // It stood still for another reason shortly before.
        if settled != nil, let switchMs = pause?.switchMs { pause?.downtimeMs = switchMs }
        self.pause = pause
        pagesWrong = source.wrong.count + destination.wrong.count
        ticksAfter = destination.ticks.count
        checksAfter = max(0, destination.verdicts.count - 1)
        // QEMU accepts incomplete device state and says "completed": only the guest itself can say that it lives.
        if checksAfter == 0 && pagesWrong == 0 {
            failure = "the guest finished no check of its memory at the destination (\(ticksAfter) ticks there)"
        }
        speedBefore = source.workPerS(from: (settled ?? asked) - Self.settling, to: settled ?? asked)
        // In post-copy the guest runs at the destination before the migration is over: count there what is "during".
        speedDuring = source.workPerS(from: moving, to: ended) ?? destination.workPerS(from: moving, to: ended)
        if pull != nil, let first = destination.ticks.first?.arrived {
            speedPulling = destination.workPerS(from: first, to: ended)
        }
        if pull?.prefetch.map({ $0.recordMs > 0 }) ?? false, let last = source.ticks.last?.arrived {
            speedRecording = source.workPerS(from: moving, to: last)
        }
        speedAfter = destination.workPerS(from: ended, to: ended + .seconds(3))
        recoveryMs = speedBefore.flatMap { $0 > 0 ? destination.recoveryMs(to: 0.95 * $0) : nil }
    }
}
