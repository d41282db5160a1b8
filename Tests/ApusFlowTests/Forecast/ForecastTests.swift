import ApusSystem
import Testing

@testable import ApusFlow

@Suite("forecast") struct ForecastTests {
    /// 512 MB guest, 1 Gb/s, a third of it moves.
    private func input(setPages: Double, writesPerS: Double, maxDowntimeMs: Double = 300) -> ForecastInput {
        ForecastInput(
            pages: 40_000, firstBytesPerPage: 4100, againBytesPerPage: 4100, linkBytesPerS: 117e6, lanes: 2,
            workingSet: WorkingSet(
                setPages: setPages, refillMs: setPages / writesPerS * 1000, driftPagesPerMs: 0),
            maxDowntimeMs: maxDowntimeMs)
    }

    @Test("a guest slower than the link converges") func converges() {
        let forecast = Forecast.rounds(input(setPages: 16_384, writesPerS: 1500))
        #expect(forecast.ending == .converges)
        #expect((2...4).contains(forecast.rounds))
        #expect(forecast.downtimeMs < 20)
        // The first pass alone takes 1.4 s.
        #expect(forecast.totalMs > 1400 && forecast.totalMs < 1600)
    }

    @Test("one faster than the link, with a small set, ends at the set") func fits() {
        let forecast = Forecast.rounds(input(setPages: 4000, writesPerS: 200_000))
        #expect(forecast.ending == .fits)
        // 4000 pages are 140 ms.
        #expect((130...175).contains(forecast.downtimeMs), "\(forecast)")
    }

    @Test("one faster than the link, with a large set, does not end, and the pause it would take is told")
    func tooBusy() {
        let forecast = Forecast.rounds(input(setPages: 16_384, writesPerS: 200_000))
        #expect(forecast.ending == .tooBusy)
        // Nearly all of the set has changed between two copies, and takes 574 ms.
        #expect((550...590).contains(forecast.downtimeMs), "\(forecast)")
        let patient = Forecast.rounds(input(setPages: 16_384, writesPerS: 200_000, maxDowntimeMs: 700))
        #expect(patient.ending == .fits)
    }

    @Test("such a guest ends when it is slowed down, later and with more bytes than a calm one") func slowed() {
        let busy = input(setPages: 16_384, writesPerS: 85_000)
        let slowed = Forecast.move(busy, slowsDown: true)
        #expect((0.3..<Brake.hardest).contains(slowed.slowedBy), "\(slowed)")
        #expect(slowed.ending != .tooBusy && slowed.downtimeMs <= 300)
        let calm = Forecast.rounds(input(setPages: 16_384, writesPerS: 1500))
        #expect(slowed.totalMs > calm.totalMs && slowed.wireBytes > calm.wireBytes)
        #expect(Forecast.move(busy, slowsDown: false) == Forecast.rounds(busy))
        #expect(Forecast.move(input(setPages: 16_384, writesPerS: 1500), slowsDown: true).slowedBy == 0)
        // It moves first, or at once: no pause but the fixed one.
        for following in [Forecast.hybrid(busy), Forecast.postcopy(busy)] {
            let leastMs = SwitchGate.leastMs(fixedMs: busy.fixedDowntimeMs, linkBytesPerS: busy.linkBytesPerS)
            #expect(following.ending == .follows && following.downtimeMs == leastMs)
        }
        #expect(Forecast.postcopy(busy).wireBytes < Forecast.hybrid(busy).wireBytes)
    }

    @Test("one with work for a part of the time must be made slower than that") func busyInPart() {
        let whole = Forecast.move(input(setPages: 16_384, writesPerS: 85_000), slowsDown: true)
        var input = input(setPages: 16_384, writesPerS: 85_000)
        input.workingSet.demand = CPUDemand(share: 0.2)
        let slowed = Forecast.move(input, slowsDown: true)
        #expect(slowed.slowedBy > 0.85 && slowed.slowedBy > whole.slowedBy, "\(slowed)")
        #expect(slowed.ending != .tooBusy && slowed.downtimeMs <= 300)
        // As much of its work is left undone, so it is the same migration.
        #expect(abs(slowed.totalMs - whole.totalMs) < 0.3 * whole.totalMs, "\(slowed) \(whole)")
    }

    @Test("progress is all that it asks for, or what it may run of that, less what each moment loses") func demand() {
        let demand = CPUDemand(share: 0.25)
        #expect(demand.progress(running: 1) == 1 && demand.progress(running: 0.3) == 1)
        #expect((0.05...0.12).contains(demand.progress(running: 0.05)))
        #expect(demand.progress(running: 0.02) == 0 && demand.progress(running: 0) == 0)
        #expect((0.27...0.3).contains(CPUDemand.whole.progress(running: 0.3)))
        let all = stride(from: 0, through: 1, by: 0.01).map { demand.progress(running: $0) }
        #expect(zip(all, all.dropFirst()).allSatisfy { $0 <= $1 })
        #expect(CPUDemand(share: .nan) == .whole && CPUDemand(share: 7) == .whole && CPUDemand(share: -1).share > 0)
    }

    @Test("what a changed page takes is not taken from the first pass where it is known, and always from later rounds")
    func encoding() {
        var flow = FlowSample()
        (flow.zstdPages, flow.wireBytes) = (10_000, 10_000 * 2048)
        var (unknown, known) = (EncodingRatio(), EncodingRatio(changedBytesPerPage: 4096))
        unknown.take(flow, isFirstPass: true)
        known.take(flow, isFirstPass: true)
        #expect(unknown.all == 0.5 && unknown.changed == 0.5 && known.all == 0.5 && known.changed == 1)
        // A hundred pages, of which half are as they were.
        flow.samePages += 50
        flow.zstdPages += 50
        flow.wireBytes += 50 * 1024
        known.take(flow, isFirstPass: false)
        #expect(known.all == 0.125 && known.changed == 0.25)
        // As many as change in a short round of a calm guest count, fewer do not.
        flow.zstdPages += 30
        flow.wireBytes += 30 * 512
        known.take(flow, isFirstPass: false)
        #expect(known.changed == 0.125)
        flow.zstdPages += 10
        flow.wireBytes += 10 * 4096
        known.take(flow, isFirstPass: false)
        #expect(known.changed == 0.125)
    }

    @Test("the last rounds cost what pages cost that are written all the time, the first ones what the others do")
    func kinds() {
        var input = input(setPages: 60, writesPerS: 10_000)
        (input.workingSet.driftPagesPerMs, input.workingSet.widePages) = (3, 16_384)
        input.linkBytesPerS = 12e6
        let alike = Forecast.rounds(input)
        (input.hotBytesPerPage, input.freshBytesPerPage) = (400, 4100)
        let cheap = Forecast.rounds(input)
        (input.hotBytesPerPage, input.freshBytesPerPage) = (4100, 400)
        let dear = Forecast.rounds(input)
        // Sixty pages are 20 ms of this link.
        #expect(
            cheap.downtimeMs < alike.downtimeMs - 10 && cheap.wireBytes > 0.98 * alike.wireBytes, "\(cheap) \(alike)")
        #expect(dear.wireBytes < 0.97 * alike.wireBytes, "\(dear) \(alike)")
    }

    @Test("pages that travel early in the first pass come again changed, late ones do not") func place() {
        let input = input(setPages: 16_384, writesPerS: 15_000)
        func bytes(_ span: ClosedRange<Double>) -> Double {
            var placed = input
            placed.writtenSpan = span
            return Forecast.rounds(placed).wireBytes
        }
        #expect(bytes(0...0.4) > bytes(0...1) + 5e6 && bytes(0...1) > bytes(0.6...1) + 5e6)
    }

    @Test("more writing never makes the pause shorter", arguments: [500.0, 2000, 8000, 20_000])
    func monotonous(writesPerS: Double) {
        let less = Forecast.rounds(input(setPages: 16_384, writesPerS: writesPerS))
        let more = Forecast.rounds(input(setPages: 16_384, writesPerS: writesPerS * 8))
        #expect(more.downtimeMs >= less.downtimeMs - SwitchGate.goodEnoughMs)
    }

    @Test("it ends for every curve, and the band holds the likely one") func always() {
        var random = SplitMix(state: 11)
        for _ in 0..<2000 {
            var given = input(setPages: .random(in: 0...1e6, using: &random), writesPerS: 1)
            given.pages = .random(in: 0...1e7, using: &random)
            given.workingSet.refillMs = .random(in: 0.01...1e6, using: &random)
            given.workingSet.driftPagesPerMs = .random(in: 0...100, using: &random)
            given.workingSet.spread = .random(in: 0...2, using: &random)
            given.linkBytesPerS = .random(in: 0...1e10, using: &random)
            let band = Forecast.band(given)
            #expect(band.likely.totalMs.isFinite && band.likely.rounds >= 2)
            // One that writes less may be worth more rounds, as long as they get shorter.
            #expect(band.low.wireBytes <= band.high.wireBytes / (1 - SwitchGate.shrink) + 1)
        }
    }

    /// What real guests did that rewrite hot pages at random, at 200 Mb/s: the first pass as it was, the curve as it must be.
    private struct Run {
        var hotMiB: Double
        var writesPerS: Double
        var firstMB: Double
        var wireMB: Double
    }
    private static let recorded = [
        Run(hotMiB: 8, writesPerS: 610, firstMB: 68.6, wireMB: 70.8),
        Run(hotMiB: 8, writesPerS: 1832, firstMB: 77.6, wireMB: 84.2),
        Run(hotMiB: 8, writesPerS: 3660, firstMB: 67.6, wireMB: 79.1),
        Run(hotMiB: 32, writesPerS: 609, firstMB: 90.5, wireMB: 96.7),
        Run(hotMiB: 32, writesPerS: 1831, firstMB: 90.9, wireMB: 109.1),
        Run(hotMiB: 32, writesPerS: 3663, firstMB: 105.9, wireMB: 145.2),
        Run(hotMiB: 96, writesPerS: 610, firstMB: 147.4, wireMB: 156.5),
        Run(hotMiB: 96, writesPerS: 1831, firstMB: 151.4, wireMB: 183.4),
        Run(hotMiB: 96, writesPerS: 3662, firstMB: 158.6, wireMB: 245.3),
    ]

    @Test("bytes of real migrations that converge are foretold", arguments: recorded.indices) func realRuns(
        _ index: Int
    ) {
        let run = Self.recorded[index]
        let hotPages = run.hotMiB * 256
        let forecast = Forecast.move(
            ForecastInput(
                pages: run.firstMB * 1e6 / 4106, firstBytesPerPage: 4106, againBytesPerPage: 4106,
                linkBytesPerS: 24.45e6, lanes: 2,
                workingSet: WorkingSet(
                    setPages: hotPages, refillMs: hotPages / run.writesPerS * 1000, driftPagesPerMs: 0),
                maxDowntimeMs: 300), slowsDown: true)
        #expect(forecast.slowedBy == 0)
        #expect(abs(forecast.wireBytes / 1e6 - run.wireMB) < 0.09 * run.wireMB, "\(forecast) \(run)")
    }

    /// What was planned for real guests at 1 Gb/s, and what then was. Copying runs 30 to 40 ms ahead of such a link, as long as their
    /// last rounds take.
    private struct Planned {
        var pages: Double
        var firstBytesPerPage: Double
        var againBytesPerPage: Double
        var set: WorkingSet
        var span: ClosedRange<Double>
        var wireMB: Double
        var isSlowed: Bool
    }
    private static let planned = [
        Planned(
            pages: 28_160, firstBytesPerPage: 2124.9, againBytesPerPage: 3755.9,
            set: WorkingSet(
                setPages: 2095.8, refillMs: 62, driftPagesPerMs: 0, spread: 0.015, demand: CPUDemand(share: 0.329)),
            span: 0.174...1, wireMB: 77.5, isSlowed: false),
        Planned(
            pages: 39_434, firstBytesPerPage: 2898.9, againBytesPerPage: 3707.4,
            set: WorkingSet(
                setPages: 15708, refillMs: 482, driftPagesPerMs: 0, spread: 0.024, demand: CPUDemand(share: 0.357)),
            span: 0.132...0.911, wireMB: 200, isSlowed: false),
        Planned(
            pages: 41_286, firstBytesPerPage: 2700.2, againBytesPerPage: 4026.6,
            set: WorkingSet(
                setPages: 16_094, refillMs: 256, driftPagesPerMs: 0, spread: 0.013, demand: CPUDemand(share: 0.416)),
            span: 0.123...0.718, wireMB: 193, isSlowed: true),
    ]

    @Test("what changes between two copies is foretold", arguments: planned.indices) func changes(_ index: Int) {
        let run = Self.planned[index]
        var input = ForecastInput(
            pages: run.pages, firstBytesPerPage: run.firstBytesPerPage, againBytesPerPage: run.againBytesPerPage,
            linkBytesPerS: 120.9e6, lanes: 2, workingSet: run.set, maxDowntimeMs: 300)
        input.writtenSpan = run.span
        let forecast = Forecast.move(input, slowsDown: true)
        // How far a guest comes that is slowed down is not known before.
        let error = run.isSlowed ? 0.2 : 0.09
        #expect(abs(forecast.wireBytes / 1e6 - run.wireMB) < error * run.wireMB, "\(forecast)")
        #expect((forecast.slowedBy > 0) == run.isSlowed, "\(forecast)")
    }
}
