/// How far a guest comes with its work that may run for a part of the time only.
///
/// ```
///   progress
///    1 |        __________
///      |      /              a guest that has work for a fifth of the time loses nothing until it may run for less than that
///      |    /
///      +---|------------|--- share of the time in which its vCPUs may run
///        share          1
/// ```
///
/// Guests keep schedules: what was not done in time is done as soon as a vCPU may run. A guest that computes all the time has
/// a share of 1, and its progress is the time that it gets, less what is lost each time: a vCPU that was stopped finds its caches
/// cold and its timers due.
public struct CPUDemand: Sendable, Equatable, Codable {
    /// Share of the time for which its busiest vCPU has work, above 0.
    public let share: Double

    /// Nothing is known: slowing it down slows all that it does.
    public static let whole = CPUDemand(share: 1)
    /// Less cannot be told from the ticks of an idle guest, and would make the slowest guest seem as fast as ever.
    static let least = 0.01

    /// What keeps a vCPU busy need not be needed for what it writes: a guest that also reads, or waits for its turn in a queue,
    /// writes on at full speed with a part of that. How large a part is not known before it has been slowed down, so all of these
    /// are reckoned with, the middle one as the likely one.
    private static let needed = [1, 0.5, 0.25]

    public init(share: Double) { self.share = share.isFinite ? min(max(share, Self.least), 1) : 1 }

    /// Of the time that it stands, what it then lacks of its time to run: 0.3 ms of a period of ``Brake``, as guests under TCG show
    /// it. With moments of 0.3 ms one does next to nothing, with 0.5 ms a tenth to a quarter of its work.
    private static let lostShare = 0.03

    var possible: [CPUDemand] { Self.needed.map { CPUDemand(share: share * $0) } }
    var likely: CPUDemand { CPUDemand(share: share * Self.needed[1]) }

    /// - Parameter running: share of the time in which its vCPUs may run.
    /// - Returns: what it does, as a share of what it does when they always may.
    public func progress(running: Double) -> Double {
        min(1, max(running - Self.lostShare * (1 - running), 0) / share)
    }
}
