/// What a lane does with the data pages of a batch.
public enum CodecChoice: Equatable, Sendable {
    case raw
    case lz4
    case zstd(level: Int32)
}

/// Chooses the codec that gets a batch across soonest, from measured costs. A pure value: time comes in as numbers.
///
/// A lane squeezes and sends in turn, but the kernel sends on while the lane squeezes the next batch; so a byte of guest
/// memory costs the larger of the time to squeeze it and the time the link needs for what is left of it, and a part of the
/// smaller one, for the cores are not the lane's alone:
///
/// ```
///   squeezing = ns per byte    sending = ratio / link bytes per ns
///   cost(codec) = max(squeezing, sending) + min(squeezing, sending) / 4      lowest wins, by some per cent
/// ```
public struct CodecChooser: Sendable {
    private struct Measure: Sendable {
        var nsPerByte: Double
        var ratio: Double
        mutating func learn(nsPerByte ns: Double, ratio r: Double) {
            nsPerByte += (ns - nsPerByte) * 0.125
            ratio += (r - ratio) * 0.25
        }
    }

    /// Raw bytes between two probes of whether squeezing would pay by now: few where pages of both kinds take turns, more
    /// with every probe that was in vain. A probe takes some 20 µs, which is a tenth of sending the least of it at 10 Gb/s.
    public static let probeBytesMin = 128 << 10
    public static let probeBytesMax = 2 << 20

    /// A squeezed page costs the receiver, too: near a ratio of 1 it never pays.
    private static let worthIt = 0.93

    // Costs before anything was measured here; ratios start from the first probe.
    private var lz4 = Measure(nsPerByte: 0.6, ratio: 1)
    private var zstd1 = Measure(nsPerByte: 2.2, ratio: 1)
    private var zstd3 = Measure(nsPerByte: 4.0, ratio: 1)
    private var bytesToProbe = 0
    private var probeBytes = CodecChooser.probeBytesMin
    public private(set) var choice = CodecChoice.raw

    public init() {}

    /// One that knows of each codec what it costs, and what it leaves.
    public init(
        lz4: (nsPerByte: Double, ratio: Double), zstd1: (nsPerByte: Double, ratio: Double),
        zstd3: (nsPerByte: Double, ratio: Double)
    ) {
        self.lz4 = Measure(nsPerByte: lz4.nsPerByte, ratio: lz4.ratio)
        self.zstd1 = Measure(nsPerByte: zstd1.nsPerByte, ratio: zstd1.ratio)
        self.zstd3 = Measure(nsPerByte: zstd3.nsPerByte, ratio: zstd3.ratio)
    }

    /// True when the caller should probe the next batch, of so many bytes: see ``probed(ratio:)``.
    public mutating func wantsProbe(bytes: Int) -> Bool {
        guard choice == .raw else { return false }
        if bytesToProbe <= 0 { return true }
        bytesToProbe -= bytes
        return false
    }

    /// A few pages were squeezed on trial by zstd level 1; the other codecs' ratios are guessed from it until they run.
    public mutating func probed(ratio: Double) {
        probeBytes = ratio < Self.worthIt ? Self.probeBytesMin : min(probeBytes * 2, Self.probeBytesMax)
        bytesToProbe = probeBytes
        zstd1.ratio = ratio
        lz4.ratio = min(1, ratio * 1.35)
        zstd3.ratio = ratio * 0.9
    }

    /// A batch was squeezed: what it cost and what was left.
    public mutating func measured(_ used: CodecChoice, nsPerByte: Double, ratio: Double) {
        switch used {
        case .raw: break
        case .lz4: lz4.learn(nsPerByte: nsPerByte, ratio: ratio)
        case .zstd(let level):
            if level <= 1 {
                zstd1.learn(nsPerByte: nsPerByte, ratio: ratio)
                zstd3.ratio = zstd1.ratio * 0.9
            } else {
                zstd3.learn(nsPerByte: nsPerByte, ratio: ratio)
                zstd1.ratio = zstd3.ratio / 0.9
            }
            lz4.ratio = min(1, zstd1.ratio * 1.35)
        }
    }

    /// Decides for the next batch, given this lane's share of the link.
    public mutating func decide(linkBytesPerNs: Double) -> CodecChoice {
        let link = max(linkBytesPerNs, 1e-6)
        var best = CodecChoice.raw
        var bestCost = 1 / link
        var currentCost = choice == .raw ? bestCost : .infinity
        func consider(_ candidate: CodecChoice, _ measure: Measure, below ratioMax: Double) {
            guard measure.ratio < ratioMax else { return }
            let (squeezing, sending) = (measure.nsPerByte, measure.ratio / link)
            let cost = max(squeezing, sending) + 0.25 * min(squeezing, sending)
            if candidate == choice { currentCost = cost }
            // From light to heavy: a heavier codec has to be clearly better, for the guest wants the CPU too.
            if cost < bestCost * 0.93 {
                best = candidate
                bestCost = cost
            }
        }
        consider(.lz4, lz4, below: 0.85)
        consider(.zstd(level: 1), zstd1, below: Self.worthIt)
        // What the strong level makes of data is only a guess until it runs: the light one must have gained already.
        if zstd1.ratio < Self.worthIt { consider(.zstd(level: 3), zstd3, below: Self.worthIt) }
        if best != choice && bestCost < currentCost * 0.9 { choice = best }
        return choice
    }
}
