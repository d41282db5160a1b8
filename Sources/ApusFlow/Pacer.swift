/// Keeps a lane below a rate. A pure value: time comes in as numbers.
struct Pacer: Sendable {
    /// Bytes per nanosecond; nil: no limit.
    private let bytesPerNs: Double?
    private var freeAtNs: UInt64 = 0
    /// What may be caught up after a pause.
    private static let burstNs: UInt64 = 20_000_000

    init(bytesPerS: Double?) { bytesPerNs = bytesPerS.map { $0 / 1e9 } }

    /// Nanoseconds to wait before these bytes may be sent.
    mutating func delayNs(for bytes: Int, nowNs: UInt64) -> UInt64 {
        guard let bytesPerNs else { return 0 }
        freeAtNs = max(freeAtNs, nowNs > Self.burstNs ? nowNs - Self.burstNs : 0)
        let delay = freeAtNs > nowNs ? freeAtNs - nowNs : 0
        freeAtNs += UInt64(Double(bytes) / bytesPerNs)
        return delay
    }
}
