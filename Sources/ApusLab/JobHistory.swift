public import ApusAPI

/// A job as `apus migrate --json --verbose` tells it: a line every few tens of milliseconds, the last one its end.
public struct JobHistory: Sendable {
    /// Not empty.
    private let updates: [JobStatus]
    /// Bytes on the link when round 1 ended, counted by an agent that does.
    private var firstRoundBytes: UInt64?

    init(updates: [JobStatus]) { self.updates = updates }

    /// - Throws: what decoding throws; `LabError.notEnough` when there is no line.
    public init(lines text: String) throws {
        let lines = text.split(separator: "\n").map(String.init)
        guard let last = lines.last else { throw LabError.notEnough(what: "output of `apus migrate --json`") }
        updates = try lines.map { try Agent.decode(JobStatus.self, $0) }
        firstRoundBytes = try Agent.decode(Counted.self, last).summary?.firstRoundBytes
    }

    private struct Counted: Decodable {
        struct Summary: Decodable { let firstRoundBytes: UInt64? }
        let summary: Summary?
    }

    /// As it ended.
    public var job: JobStatus { updates[updates.count - 1] }

    /// Bytes put on the link after the first pass over all memory; nil when the job did not complete or told nothing on
    /// its way. Without the agent's count it is taken from the last news of round 1, which is too much, never too
    /// little: by what the link carries between two updates.
    public var bytesAfterRound1: UInt64? {
        guard let total = job.summary?.wireBytes, job.phase == .completed else { return nil }
        return (firstRoundBytes ?? lastNewsOfRound1?.wireBytes).map { total - min($0, total) }
    }

    /// While QEMU does not answer, as in its last round, updates repeat its former round and remaining memory beside
    /// newer bytes: they are no news.
    private var lastNewsOfRound1: JobProgress? {
        updates.lazy.filter { !$0.phase.isFinal }.map(\.progress).prefix { $0.round <= 1 }
            .reduce(nil) { news, progress in
                news?.memoryRemainingBytes == progress.memoryRemainingBytes ? news : progress
            }
    }
}
