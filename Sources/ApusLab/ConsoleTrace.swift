/// What a proving guest has said on one host's console, with the moments at which its lines arrived there.
public struct ConsoleTrace: Sendable, Equatable {
    public struct Tick: Sendable, Equatable {
        public var sequence: UInt64
        public var arrived: Moment
        public var guestNs: UInt64
        /// Pages the guest has written since it began; of `redis` the server's answers.
        public var work: UInt64

        public init(sequence: UInt64, arrived: Moment, guestNs: UInt64, work: UInt64) {
            self.sequence = sequence
            self.arrived = arrived
            self.guestNs = guestNs
            self.work = work
        }
    }

    /// The guest has compared every page once more.
    public struct Verdict: Sendable, Equatable {
        public var pass: UInt64
        public var isGood: Bool
        public var pagesChecked: UInt64
        public var arrived: Moment
    }

    public private(set) var ticks: [Tick] = []
    public private(set) var verdicts: [Verdict] = []
    /// `BAD …` lines; only the first ones are kept.
    public private(set) var wrong: [String] = []
    /// The region is filled and proving has begun.
    public private(set) var isReady = false
    /// Complete lines that were none of the above: boot messages, or a line cut by the switch.
    public private(set) var otherLines = 0
    private var partial: [UInt8] = []

    static let wrongMax = 64
    private static let lineBytesMax = 512

    public init() {}

    /// Takes bytes as they arrive; lines may be cut anywhere.
    public mutating func feed(_ bytes: some Sequence<UInt8>, arrived: Moment) {
        for byte in bytes {
            if byte == UInt8(ascii: "\n") || partial.count == Self.lineBytesMax {
                line(String(decoding: partial, as: UTF8.self), arrived)
                partial.removeAll(keepingCapacity: true)
            }
            if byte != UInt8(ascii: "\n") && byte != UInt8(ascii: "\r") { partial.append(byte) }
        }
    }

    private mutating func line(_ text: String, _ arrived: Moment) {
        let words = text.split(separator: " ")
        switch words.first {
        case "T":
            guard words.count == 4, let sequence = UInt64(words[1]), let ns = UInt64(words[2]),
                let work = UInt64(words[3])
            else { return otherLines += 1 }
            ticks.append(Tick(sequence: sequence, arrived: arrived, guestNs: ns, work: work))
        case "V":
            guard words.count == 5, let pass = UInt64(words[1]), let pages = UInt64(words[3])
            else { return otherLines += 1 }
            verdicts.append(Verdict(pass: pass, isGood: words[2] == "ok", pagesChecked: pages, arrived: arrived))
        case "BAD":
            if wrong.count < Self.wrongMax { wrong.append(text) }
        case "R": isReady = true
        default: otherLines += 1
        }
    }

    /// The guest's work per second in a span of host time; nil without two ticks in it. A silence that began before the
    /// span, or at once, counts with its part in it.
    public func workPerS(from start: Moment, to end: Moment) -> Double? {
        guard let index = ticks.firstIndex(where: { $0.arrived >= start }),
            let last = ticks.last(where: { $0.arrived <= end }), last.arrived > ticks[index].arrived
        else { return nil }
        let first = ticks[index]
        guard index > 0 else { return Double(last.work - first.work) / (last.arrived - first.arrived).inSeconds }
        let before = ticks[index - 1]
        let part = (first.arrived - start).inSeconds / (first.arrived - before.arrived).inSeconds
        return (Double(last.work - first.work) + Double(first.work - before.work) * part)
            / (last.arrived - start).inSeconds
    }

    /// From the first tick until the first tenth of a second in which the guest works at this speed; nil: there is none.
    public func recoveryMs(to workPerS: Double) -> Double? {
        guard let first = ticks.first else { return nil }
        var end = 0
        for start in ticks {
            while end < ticks.count, ticks[end].arrived - start.arrived < .milliseconds(100) { end += 1 }
            guard end < ticks.count else { return nil }
            let seconds = (ticks[end].arrived - start.arrived).inSeconds
            if Double(ticks[end].work - start.work) / seconds >= workPerS {
                return (start.arrived - first.arrived).milliseconds
            }
        }
        return nil
    }
}

/// How the guest went through a migration, from the ticks at both consoles.
///
/// ```
///   source       T T T T T T T|                       |
///   destination               |          T T T T T T T T
///                              <- pause ->
///                 <-------------- window ------------->   0.5 s before .. 3 s after
/// ```
/// Host time decides: the guest's own clock does not run while it is stopped.
public struct GuestPause: Sendable, Equatable, Codable {
    /// The longest silence around the switch: what somebody who watches this guest sees.
    public var downtimeMs: Double
    /// From the last tick at the source to the first one at the destination.
    public var switchMs: Double
    /// The part of `switchMs` in which the guest's own clock ran: what is left of a tick, and what a guest without
    /// translated code and warm caches takes to show the next one. Missing in results of old.
    public var switchRunMs: Double?
    /// The longest silence in the second before the migration: what this machine's noise alone does.
    public var noiseMs: Double
    /// Sum of the silences above four ticks from the start of the migration on, less the switch: post-copy's stalls.
    public var stallsMs: Double
    /// Ticks that neither console has.
    public var ticksLost: Int

    public static let windowBefore = Duration.milliseconds(500)
    public static let windowAfter = Duration.seconds(3)

    /// - Returns: nil when one of the consoles has no tick.
    public static func measure(
        source: ConsoleTrace, destination: ConsoleTrace, started: Moment, tick: Duration = .milliseconds(5)
    ) -> GuestPause? {
        guard let last = source.ticks.last, let first = destination.ticks.first else { return nil }
        let all = source.ticks + destination.ticks
        let window = (last.arrived - windowBefore)...(first.arrived + windowAfter)
        var downtime = Duration.zero, noise = Duration.zero, stalls = Duration.zero
        for (earlier, later) in zip(all, all.dropFirst()) {
            let gap = later.arrived - earlier.arrived
            if window.overlaps(earlier.arrived...max(earlier.arrived, later.arrived)) { downtime = max(downtime, gap) }
            if later.arrived <= started && earlier.arrived >= started - .seconds(1) { noise = max(noise, gap) }
            let isSwitch = earlier.sequence == last.sequence && later.sequence == first.sequence
            if earlier.arrived >= started && gap > tick * 4 && !isSwitch { stalls += gap - tick }
        }
        let lost = Int(clamping: first.sequence) - Int(clamping: last.sequence) - 1
        return GuestPause(
            downtimeMs: downtime.milliseconds, switchMs: (first.arrived - last.arrived).milliseconds,
            switchRunMs: Double(Int64(clamping: first.guestNs) - Int64(clamping: last.guestNs)) / 1e6,
            noiseMs: noise.milliseconds, stallsMs: stalls.milliseconds, ticksLost: max(0, lost))
    }
}
