/// Moments and durations of measurements. One clock for everything: console lines, QMP events and command times are
/// compared with one another.
public typealias Moment = ContinuousClock.Instant

extension Duration {
    var milliseconds: Double { Double(components.seconds) * 1e3 + Double(components.attoseconds) / 1e15 }
    var inSeconds: Double { milliseconds / 1e3 }
}

/// Asks again and again until `probe` gives an answer.
///
/// - Throws: `LabError.timedOut`, whatever `probe` throws, `CancellationError`.
@discardableResult
public func wait<Answer>(
    for what: String, seconds: Double, every step: Duration = .milliseconds(5), probe: () async throws -> Answer?
) async throws -> Answer {
    let deadline = ContinuousClock.now + .seconds(seconds)
    while true {
        if let answer = try await probe() { return answer }
        guard ContinuousClock.now < deadline else { throw LabError.timedOut(what: what, seconds: seconds) }
        try await ContinuousClock().sleep(for: step)
    }
}
