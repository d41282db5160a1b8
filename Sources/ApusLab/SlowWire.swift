internal import ApusSystem
internal import Synchronization

/// A wire with length: what is put in at one end comes out at the other after a fixed time, in order.
///
/// ```
///   namespace a                       this process                       namespace b
///   wire0 [tbf rate] ── read ──▶ due 1.2 ms | 1.7 ms | 2.1 ms ── deliver ──▶ wire0
///   wire0 ◀── deliver ── 2.3 ms | 1.9 ms ◀── read ──────────── [tbf rate] wire0
/// ```
/// Neither end notices: its interface is a TUN one. Segments travel whole, so that 1 Gb/s is some 2000 packets a second.
final class SlowWire: Sendable {
    private let isOver = Atomic(false)
    private let threads: Monitor<[WorkerThread]> = Monitor([])

    /// Before what vCPUs and agents do: a late wire would be a longer one.
    private static let nice: Int32 = -15

    /// Makes the interface `name` in both namespaces and joins them.
    init(_ name: String, spaces: [String], oneWayMs: Double) throws {
        let ends = try spaces.map { try TunDevice.make(name, space: "/run/netns/\($0)") }
        for (from, to) in [(ends[0], ends[1]), (ends[1], ends[0])] {
            let thread = try WorkerThread("lab-wire", nice: Self.nice) { [self] in carry(from, to, oneWayMs) }
            threads.update { $0.append(thread) }
        }
    }

    /// The interfaces go.
    func end() {
        isOver.store(true, ordering: .relaxed)
        for thread in threads.read({ $0 }) { thread.join() }
        threads.update { $0 = [] }
    }

    private func carry(_ from: TunDevice, _ to: TunDevice, _ oneWayMs: Double) {
        var line = DelayLine()
        do throws(SystemError) {
            while !isOver.load(ordering: .relaxed) {
                let waitNs = line.waitNs(now: .now())
                if line.isFull {
                    pause(ms: Double(waitNs) / 1e6)
                } else if try from.isReadable(withinNs: waitNs) {
                    try line.take(from, due: .now().adding(ms: oneWayMs))
                }
                while line.deliver(to, now: .now()) {}
            }
        } catch {
            // Its namespace has gone.
        }
    }
}

/// Packets on their way, in the order of arrival.
private struct DelayLine: ~Copyable {
    private struct Packet {
        let offset: Int
        let byteCount: Int
        let due: Instant
    }
    /// 5 ms at 40 Gb/s.
    private static let byteCount = 32 << 20
    private static let packetsMax = 16_384
    /// How long to wait at most, so that an end is noticed.
    private static let restNs: UInt64 = 50_000_000

    private var bytes = PageBuffer(byteCount: Self.byteCount)
    private var packets: [Packet?] = Array(repeating: nil, count: Self.packetsMax)
    private var head = 0
    private var count = 0
    private var end = 0

    private var first: Packet? { packets[head] }

    /// Where the next packet goes; nil: there is no room, so it waits where it is.
    private var room: Int? {
        guard let first else { return 0 }
        guard count < Self.packetsMax else { return nil }
        if end > first.offset {
            if end + TunDevice.packetBytesMax <= Self.byteCount { return end }
            return TunDevice.packetBytesMax <= first.offset ? 0 : nil
        }
        return end + TunDevice.packetBytesMax <= first.offset ? end : nil
    }
    var isFull: Bool { room == nil }

    /// Until the first is due.
    func waitNs(now: Instant) -> UInt64 {
        guard let first else { return Self.restNs }
        return first.due > now ? min(first.due.ns - now.ns, Self.restNs) : 0
    }

    mutating func take(_ device: TunDevice, due: Instant) throws(SystemError) {
        guard let offset = room, let byteCount = try device.read(into: &bytes, at: offset) else { return }
        packets[(head + count) % Self.packetsMax] = Packet(offset: offset, byteCount: byteCount, due: due)
        count += 1
        end = offset + byteCount
    }

    /// - Returns: a packet was due.
    mutating func deliver(_ device: TunDevice, now: Instant) -> Bool {
        guard let first, first.due <= now else { return false }
        device.deliver(bytes.bytes.extracting(first.offset..<first.offset + first.byteCount))
        packets[head] = nil
        head = (head + 1) % Self.packetsMax
        count -= 1
        return true
    }
}
