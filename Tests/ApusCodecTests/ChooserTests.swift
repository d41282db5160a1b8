import ApusCodec
import Testing

@Suite struct ChooserTests {
    private func choice(ratio: Double, link: Double) -> CodecChoice {
        var chooser = CodecChooser()
        let wantsProbe = chooser.wantsProbe(bytes: 4096)
        #expect(wantsProbe)
        chooser.probed(ratio: ratio)
        return chooser.decide(linkBytesPerNs: link)
    }

    @Test func rawWhenNothingIsGained() {
        #expect(choice(ratio: 1, link: 0.0125) == .raw)
        #expect(choice(ratio: 0.97, link: 0.0125) == .raw)
    }
    @Test func rawWhenTheLinkIsFasterThanAnyCodec() { #expect(choice(ratio: 0.3, link: 5) == .raw) }
    @Test func fastCodecOnFastLinks() { #expect(choice(ratio: 0.3, link: 1.2) == .lz4) }
    @Test func strongCodecOnSlowLinks() {
        #expect(choice(ratio: 0.3, link: 0.0625) == .zstd(level: 1))
        #expect(choice(ratio: 0.3, link: 0.0125) == .zstd(level: 3))
    }

    @Test func aCodecThatTurnsOutSlowIsGivenUp() {
        var chooser = CodecChooser()
        chooser.probed(ratio: 0.5)
        let before = chooser.decide(linkBytesPerNs: 0.125)
        #expect(before != .raw)
        for _ in 0..<100 {
            chooser.measured(.zstd(level: 3), nsPerByte: 50, ratio: 0.5)
            chooser.measured(.zstd(level: 1), nsPerByte: 50, ratio: 0.5)
        }
        let after = chooser.decide(linkBytesPerNs: 0.125)
        #expect(after == .lz4)
    }

    @Test func probesOnlyNowAndThen() {
        var chooser = CodecChooser()
        var probes = 0
        for _ in 0..<320 where chooser.wantsProbe(bytes: 256 << 10) {
            chooser.probed(ratio: 1)
            probes += 1
        }
        #expect((30...40).contains(probes), "each 2 MiB in the end")
    }

    /// What squeezes lies among what does not, as next to a disk's pages: few of it may go raw.
    @Test func whatSqueezesIsSeenSoon() {
        var chooser = CodecChooser()
        for turn in 0..<20 {
            // A trial that gains nothing.
            chooser.probed(ratio: turn.isMultiple(of: 2) ? 1 : 0.3)
            if turn.isMultiple(of: 2) { chooser.measured(.zstd(level: 1), nsPerByte: 2, ratio: 1) }
            _ = chooser.decide(linkBytesPerNs: 0.0625)
        }
        for _ in 0..<40 { chooser.measured(.zstd(level: 1), nsPerByte: 2, ratio: 1) }
        let incompressible = chooser.decide(linkBytesPerNs: 0.0625)
        #expect(incompressible == .raw)
        var raw = 0
        while chooser.decide(linkBytesPerNs: 0.0625) == .raw, raw < 64 << 20 {
            if chooser.wantsProbe(bytes: 8192) { chooser.probed(ratio: 0.3) } else { raw += 8192 }
        }
        #expect(raw <= CodecChooser.probeBytesMin)
    }
}

@Suite struct LinkMeterTests {
    /// Sends for one window: `waited` of its 100 ms.
    private func window(_ meter: inout LinkMeter, _ now: inout UInt64, bytes: UInt64, waitedMs: UInt64) {
        meter.credited(bytes)
        meter.waited(ns: waitedMs * 1_000_000)
        now += LinkMeter.windowNs
        meter.tick(nowNs: now)
    }

    @Test func waitingShowsTheRate() {
        var now: UInt64 = 0
        var meter = LinkMeter(nowNs: 0, assumedBytesPerNs: 0.01)
        window(&meter, &now, bytes: 12_500_000, waitedMs: 80)
        #expect(abs(meter.bytesPerNs - 0.125) < 1e-9)
    }

    @Test func aFreeLinkIsTriedUpwards() {
        var now: UInt64 = 0
        var meter = LinkMeter(nowNs: 0, assumedBytesPerNs: 0.1)
        for _ in 0..<6 { window(&meter, &now, bytes: 200_000_000, waitedMs: 0) }
        #expect(meter.bytesPerNs > 5)
    }

    /// Whoever has little to send never waits, and learns nothing from it.
    @Test func aSlowSenderShowsNothing() {
        var now: UInt64 = 0
        var meter = LinkMeter(nowNs: 0, assumedBytesPerNs: 0.1)
        for _ in 0..<20 { window(&meter, &now, bytes: 1_000_000, waitedMs: 0) }
        #expect(meter.bytesPerNs == 0.1)
    }

    @Test func aKnownRateStaysWhileTheSenderIsBusyElsewhere() {
        var now: UInt64 = 0
        var meter = LinkMeter(nowNs: 0, assumedBytesPerNs: 0.1)
        window(&meter, &now, bytes: 12_500_000, waitedMs: 80)
        for _ in 0..<20 { window(&meter, &now, bytes: 1_000_000, waitedMs: 0) }
        #expect(abs(meter.bytesPerNs - 0.125) < 1e-9)
    }
}
