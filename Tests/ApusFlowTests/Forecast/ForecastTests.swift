import Testing

@testable import ApusFlow

@Suite("forecast") struct ForecastTests {
    /// 512 MB guest, 1 Gb/s, a third of it moves.
    private func input(setPages: Double, writesPerS: Double, maxDowntimeMs: Double = 300) -> ForecastInput {
        ForecastInput(
            pages: 40_000, firstBytesPerPage: 4100, againBytesPerPage: 4100, linkBytesPerS: 117e6,
            workingSet: WorkingSet(
                setPages: setPages, refillMs: setPages / writesPerS * 1000, driftPagesPerMs: 0),
            maxDowntimeMs: maxDowntimeMs)
    }

    @Test("a guest slower than the link converges") func converges() {
        let forecast = Forecast.rounds(input(setPages: 16_384, writesPerS: 1500))
        #expect(forecast.ending == .converges)
        #expect(forecast.rounds >= 3)
        #expect(forecast.downtimeMs < 20)
        // The first pass alone takes 1.4 s.
        #expect(forecast.totalMs > 1400 && forecast.totalMs < 1600)
    }

    @Test("one faster than the link, with a small set, ends at the set") func fits() {
        let forecast = Forecast.rounds(input(setPages: 4000, writesPerS: 200_000))
        #expect(forecast.ending == .fits)
        // 4000 pages are 140 ms.
        #expect(abs(forecast.downtimeMs - 155) < 10)
    }

    @Test("one faster than the link, with a large set, does not end, and the pause it would take is told")
    func tooBusy() {
        let forecast = Forecast.rounds(input(setPages: 16_384, writesPerS: 200_000))
        #expect(forecast.ending == .tooBusy)
        #expect(abs(forecast.downtimeMs - 589) < 20)
        let patient = Forecast.rounds(input(setPages: 16_384, writesPerS: 200_000, maxDowntimeMs: 700))
        #expect(patient.ending == .fits)
    }

    @Test("such a guest ends when it is slowed down, later and with more bytes than a calm one") func slowed() throws {
        let busy = input(setPages: 16_384, writesPerS: 85_000)
        let share = try #require(Forecast.leastShare(busy))
        #expect((0.3...0.9).contains(share))
        let slowed = Forecast.move(busy, slowsDown: true)
        #expect(slowed.ending != .tooBusy && slowed.downtimeMs <= 300)
        #expect(slowed.totalMs > Forecast.rounds(busy).totalMs && slowed.wireBytes > Forecast.rounds(busy).wireBytes)
        #expect(Forecast.move(busy, slowsDown: false) == Forecast.rounds(busy))
        #expect(Forecast.leastShare(input(setPages: 16_384, writesPerS: 1500)) == nil)
        // It moves first, or at once: no pause but the fixed one.
        for following in [Forecast.hybrid(busy), Forecast.postcopy(busy)] {
            #expect(following.ending == .follows && following.downtimeMs == busy.fixedDowntimeMs)
        }
        #expect(Forecast.postcopy(busy).wireBytes < Forecast.hybrid(busy).wireBytes)
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
            #expect(band.low.wireBytes <= band.high.wireBytes * 1.7 + 1)
        }
    }
}
