/// Who moves the guest.
public enum Peer: Sendable {
    case apus(ApusPeer)
    case qemu(PlainQemu)

    public var label: String {
        switch self {
        case .apus(let apus): apus.label
        case .qemu(let plain): plain.label
        }
    }

    /// One migration in a laboratory of its own. A migration that fails is a result too.
    ///
    /// - Parameters:
    ///   - rate: bits per second of the link; nil: unshaped.
    ///   - rttMs: what the link adds to the time of a round trip.
    public func migrate(
        _ workload: Workload, rate: UInt64?, rttMs: Double = 0, image: GuestImage, accelerator: Accelerator
    ) async throws -> Outcome {
        var outcome = Outcome(peer: label, workload: workload.name, rate: rate)

        do {
            outcome = try await Lab.with(logs: .ofFailures) { lab in
                let pair = try await HostPair.make(in: lab, rate: rate, rttMs: rttMs)
                switch self {
                case .apus(let peer):
                    return try await peer.migrate(workload, over: pair, in: lab, image: image, accelerator: accelerator)
                case .qemu(let plain):
                    return try await plain.migrate(
                        workload, over: pair, in: lab, image: image, accelerator: accelerator)
                }
            }
        } catch is CancellationError {
            throw CancellationError()
        } catch {
            outcome.failure = "\(error)"
        }
        if rttMs > 0 { outcome.rttMs = rttMs }
        return outcome
    }
}
