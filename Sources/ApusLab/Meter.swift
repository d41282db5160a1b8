/// Wire bytes and CPU time between two moments.
struct Meter: Sendable {
    let pair: HostPair
    let source: Int32?
    let destination: Int32?
    private let bytes: WireBytes?
    private let cpu: (source: CPUTime?, destination: CPUTime?)

    static func start(pair: HostPair, source: Int32?, destination: Int32?) async throws -> Meter {
        Meter(
            pair: pair, source: source, destination: destination, bytes: try await pair.wireBytes(),
            cpu: (source.flatMap(CPUTime.of(pid:)), destination.flatMap(CPUTime.of(pid:))))
    }

    func stop(into outcome: inout Outcome) async throws {
        if let bytes, let now = try await pair.wireBytes() { outcome.wireBytes = (now - bytes).both }
        func spent(_ pid: Int32?, since earlier: CPUTime?) -> Double? {
            guard let pid, let earlier, let now = CPUTime.of(pid: pid) else { return nil }
            return now.besideGuest - earlier.besideGuest
        }
        outcome.qemuCPUSource = spent(source, since: cpu.source)
        outcome.qemuCPUDestination = spent(destination, since: cpu.destination)
    }
}
