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
/// a share of 1, and its progress is the time that it gets.
public struct CPUDemand: Sendable, Equatable, Codable {
    /// Share of the time for which its busiest vCPU has work, above 0.
    public let share: Double

    /// Nothing is known: slowing it down slows all that it does.
    public static let whole = CPUDemand(share: 1)
    /// Less cannot be told from the ticks of an idle guest, and would make the slowest guest seem as fast as ever.
    static let least = 0.01

    public init(share: Double) { self.share = share.isFinite ? min(max(share, Self.least), 1) : 1 }

    /// - Parameter running: share of the time in which its vCPUs may run.
    /// - Returns: what it does, as a share of what it does when they always may.
    public func progress(running: Double) -> Double { min(1, max(running, 0) / share) }
}
