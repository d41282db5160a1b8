public import ApusAPI

/// One guest that goes to and fro between two agents, proving its memory after each hop.
public struct Shuttle: Sendable {
    private let agents: [Agent]
    private let pair: HostPair
    private let peer: ApusPeer
    private var here: Console
    /// The agent that has the guest.
    private var host = 0
    /// When the last job was over.
    private var wire: WireBytes?
    public private(set) var hops = 0
    private static let name = "prover"
    /// Checks begin anew at every console, and the first one may have begun before it was opened.
    private static let wholeChecks = 2

    /// The wire is pulled out at some moment, for so long.
    public struct Cut: Sendable, Equatable {
        public enum Moment: Sendable, Equatable {
            /// After the command.
            case after(ms: Double)
            /// When the guest runs at its destination, and at most this share of what it lacked then is missing.
            case missing(share: Double)
        }
        public var moment: Moment
        public var forMs: Double

        public init(_ moment: Moment, forMs: Double) {
            self.moment = moment
            self.forMs = forMs
        }
    }

    public enum Hop: Sendable {
        case moved(JobSummary, wasCut: Bool)
        /// The migration was given up: the guest is where it was, and its memory right.
        case stayed(reason: String)
    }

    public static func launch(
        _ peer: ApusPeer, _ workload: Workload, _ pair: HostPair, _ lab: Lab, _ image: GuestImage,
        _ accelerator: Accelerator
    ) async throws -> Shuttle {
        let first = try await Agent.start("a", peer, pair.source, lab, port: ApusPeer.port - 1)
        let second = try await Agent.start("b", peer, pair.destination, lab, port: ApusPeer.port)
        let console = try await first.run(workload, as: name, qemu: peer.qemu, image: image, accelerator: accelerator)
        return Shuttle(agents: [first, second], pair: pair, peer: peer, here: console)
    }

    /// Moves the guest to the other host and waits for a full check that began there; with a cut, for the wire too.
    ///
    /// - Throws: `LabError`: a wrong page, a guest that nobody runs, and without a cut any failed migration.
    public mutating func hop(_ cut: Cut? = nil) async throws -> Hop {
        let (pair, to) = (pair, agents[1 - host])
        async let cable = Self.pull(cut, pair, to)
        do {
            let job = try await move()
            return .moved(job.summary ?? JobSummary(), wasCut: try await cable)
        } catch let error as LabError {
            guard cut != nil, case .migrationFailed(_, let reason) = error else { throw error }
            _ = try await cable
            try await here.verdicts(here.trace.verdicts.count + Self.wholeChecks, seconds: 60)
            return .stayed(reason: reason)
        }
    }

    /// As ``hop(_:)``; waits first until everything is known that need not travel.
    ///
    /// - Returns: the job, and the bytes of both directions on the wire; 0 without namespaces.
    public mutating func measuredHop() async throws -> (job: JobStatus, wireBytes: UInt64) {
        let from = agents[host], to = agents[1 - host]
        if peer.refers {
            try await from.waitForIndexes()
            if hops > 0 { try await to.waitForImage(of: Self.name) }
        }
        let before = try await pair.wireBytes()
        let job = try await move()
        guard let before, let after = wire else { return (job, 0) }
        return (job, (after - before).both)
    }

    private mutating func move() async throws -> JobStatus {
        let from = agents[host], to = agents[1 - host]
        let (name, patienceS) = (Self.name, peer.timeoutS)
        async let there = Console.connect(path: to.consolePath(of: name), seconds: patienceS)
        let job = try await from.migrate(Self.name, to: to.endpoint, peer).job
        wire = try await pair.wireBytes()
        let console = try await there
        try await console.verdicts(Self.wholeChecks, seconds: 60)
        await here.close()
        here = console
        host = 1 - host
        hops += 1
        return job
    }

    /// - Returns: false: the moment did not come.
    private static func pull(_ cut: Cut?, _ pair: HostPair, _ destination: Agent) async throws -> Bool {
        guard let cut else { return false }
        switch cut.moment {
        case .after(let ms): try await ContinuousClock().sleep(for: .milliseconds(Int(ms)))
        case .missing(let share):
            guard try await destination.waitForPages(of: name, missingShare: share, seconds: 60) else { return false }
        }
        try await pair.setLink(up: false)
        try await ContinuousClock().sleep(for: .milliseconds(Int(cut.forMs)))
        try await pair.setLink(up: true)
        return true
    }
}
