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
    public func migrate(_ workload: Workload, rate: UInt64?, image: GuestImage, accelerator: Accelerator) async throws
        -> Outcome
    {
        do {
            return try await Lab.with { lab in
                let pair = try await HostPair.make(in: lab, rate: rate)
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
            var outcome = Outcome(peer: label, workload: workload.name, rate: rate)
            outcome.failure = "\(error)"
            return outcome
        }
    }
}
