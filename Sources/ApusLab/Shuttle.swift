public import ApusAPI

/// One guest that goes to and fro between two agents, proving its memory after each hop.
public struct Shuttle: Sendable {
    private let agents: [Agent]
    private let pair: HostPair
    private let peer: ApusPeer
    private var here: Console
    /// When the last job was over.
    private var wire: WireBytes?
    public private(set) var hops = 0
    private static let name = "prover"

    public static func launch(
        _ peer: ApusPeer, _ workload: Workload, _ pair: HostPair, _ lab: Lab, _ image: GuestImage,
        _ accelerator: Accelerator
    ) async throws -> Shuttle {
        let first = try await Agent.start("a", peer, pair.source, lab, port: ApusPeer.port - 1)
        let second = try await Agent.start("b", peer, pair.destination, lab, port: ApusPeer.port)
        let console = try await first.run(workload, as: name, qemu: peer.qemu, image: image, accelerator: accelerator)
        return Shuttle(agents: [first, second], pair: pair, peer: peer, here: console)
    }

    /// Moves the guest to the other host and waits for a full check that began there.
    ///
    /// - Returns: what the migration took, in milliseconds.
    public mutating func hop() async throws -> Double { try await move().summary?.totalMs ?? 0 }

    /// As ``hop()``; waits first until everything is known that need not travel.
    ///
    /// - Returns: the job, and the bytes of both directions on the wire; 0 without namespaces.
    public mutating func measuredHop() async throws -> (job: JobStatus, wireBytes: UInt64) {
        let from = agents[hops % 2], to = agents[(hops + 1) % 2]
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
        let from = agents[hops % 2], to = agents[(hops + 1) % 2]
        async let there = Console.connect(path: to.consolePath(of: Self.name), seconds: peer.timeoutS)
        let job = try await from.migrate(Self.name, to: to.endpoint, peer).job
        wire = try await pair.wireBytes()
        let console = try await there
        try await console.verdicts(2, seconds: 60)
        await here.close()
        here = console
        hops += 1
        return job
    }
}
