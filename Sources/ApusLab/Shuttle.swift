import ApusAPI

/// One guest that goes to and fro between two agents, proving its memory after each hop.
public struct Shuttle: Sendable {
    private let agents: [Agent]
    private let pair: HostPair
    private let peer: ApusPeer
    private var here: Console
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
    public mutating func hop() async throws -> Double {
        let from = agents[hops % 2], to = agents[(hops + 1) % 2]
        async let there = Console.connect(path: to.consolePath(of: Self.name), seconds: peer.timeoutS)
        let job = try await from.migrate(Self.name, to: to.endpoint, peer).job
        let console = try await there
        try await console.verdicts(2, seconds: 60)
        await here.close()
        here = console
        hops += 1
        return job.summary?.totalMs ?? 0
    }
}
