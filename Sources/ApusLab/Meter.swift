internal import Synchronization

/// Wire bytes and QEMUs' CPU time between two moments.
struct Meter: Sendable {
    private let pair: HostPair
    private let bytes: WireBytes?
    private let source: CPUWatch?
    private let destination: CPUWatch?

    static func start(pair: HostPair, source: Int32?, destination: Int32?) async throws -> Meter {
        Meter(
            pair: pair, bytes: try await pair.wireBytes(), source: source.map(CPUWatch.init),
            destination: destination.map(CPUWatch.init))
    }

    /// - Parameter round1: what had been put on the wire when the first pass over memory was done.
    func stop(into outcome: inout Outcome, round1: UInt64? = nil) async throws {
        if let bytes, let now = try await pair.wireBytes() {
            outcome.wireBytes = (now - bytes).both
            if let round1 { outcome.bytesAfterRound1 = now.both - min(round1, now.both) }
        }
        outcome.qemuCPUSource = source?.stop()
        outcome.qemuCPUDestination = destination?.stop()
    }
}

/// CPU time of a QEMU that may end while it is watched, as the source's does once its guest has gone: the last reading
/// counts, at most 50 ms old.
private final class CPUWatch: Sendable {
    private let pid: Int32
    private let readings: Mutex<(first: CPUTime, last: CPUTime)?>
    private let task = Mutex<Task<Void, Never>?>(nil)

    init(pid: Int32) {
        self.pid = pid
        readings = Mutex(CPUTime.of(pid: pid).map { ($0, $0) })
        task.withLock {
            $0 = Task { [weak self] in
                while (try? await ContinuousClock().sleep(for: .milliseconds(50))) != nil, let self { self.read() }
            }
        }
    }

    private func read() {
        guard let now = CPUTime.of(pid: pid) else { return }
        // A process that is ending has no threads left, so its guest's share can no longer be told.
        readings.withLock { readings in
            if let last = readings?.last, now.vcpus >= last.vcpus { readings?.last = now }
        }
    }

    /// - Returns: seconds spent on anything but running the guest.
    func stop() -> Double? {
        task.withLock { $0?.cancel() }
        read()
        return readings.withLock { $0.map { $0.last.besideGuest - $0.first.besideGuest } }
    }
}
