/// The row of a session that survives the agent.
public struct SessionRecord<Stage: Codable & Sendable & Equatable>: Codable, Sendable, Equatable {
    public var job: String
    public var guestRunning: Bool
    public var stage: Stage
    /// Destination: pages are, or may be, missing.
    public var pulls: Bool?

    public init(job: String, guestRunning: Bool, stage: Stage, pulls: Bool? = nil) {
        self.pulls = pulls
        self.job = job
        self.guestRunning = guestRunning
        self.stage = stage
    }
}

public typealias SourceRecord = SessionRecord<SourceStage>
public typealias DestinationRecord = SessionRecord<DestinationStage>
