internal import ApusMemory

/// The rounds of a source and the decisions of its gate, against the curve of a guest instead of the guest.
struct ForetoldRounds {
    private let input: ForecastInput
    private let movesWhenFlat: Bool
    private let msPerByte: Double
    private var gate: SwitchGate
    private var wireBytes: Double
    private var elapsedMs: Double
    /// Wire bytes per page of the round that is looked at.
    private var bytesPerPage: Double

    /// - Parameter movesWhenFlat: what another round does not make less is fetched afterwards.
    init(_ input: ForecastInput, slowsDown: Bool, movesWhenFlat: Bool = false) {
        self.input = input
        self.movesWhenFlat = movesWhenFlat
        gate = SwitchGate(
            maxDowntimeMs: input.maxDowntimeMs, ladder: Ladder(slowsDown: slowsDown, patienceMs: 0),
            fixedMs: input.fixedDowntimeMs, curve: input.workingSet)
        msPerByte = 1000 / max(input.linkBytesPerS, 1)
        bytesPerPage = input.againBytesPerPage
        wireBytes = input.pages * input.firstBytesPerPage
        elapsedMs = wireBytes * msPerByte
    }

    consuming func run() -> Forecast {
        var (sentPages, sentMs, idleMs) = (input.pages, elapsedMs, 0.0)
        var lastReady = Double.infinity
        for round in 2...Self.roundsMax {
            let ready = min(input.workingSet.dirtied(inMs: sentMs + idleMs, running: 1 - gate.slowed), input.pages)
            let span = round == 2 ? input.writtenSpan : 0...1
            bytesPerPage = input.againBytesPerPage * changedShare(ready, sentPages, sentMs, idleMs, span)
            let isShrinking = ready < SwitchGate.shrink * lastReady
            let sample = sample(round, ready)
            if movesWhenFlat && !isShrinking { return follow(round, ready, sample) }
            switch gate.decide(sample) {
            case .open: return movesWhenFlat ? follow(round, ready, sample) : stop(round, ready, sample, fits: true)
            case .refuse, .handOver: return stop(round, ready, sample, fits: false)
            case .wait, .slowDown: break
            }
            lastReady = max(ready, 1)
            wireBytes += ready * bytesPerPage
            (sentPages, sentMs) = (ready, max(ready * bytesPerPage * msPerByte, Self.leastRoundMs))
            idleMs = isShrinking || gate.slowed > 0 ? 0 : max(DirectSource.steadyRoundMs - sentMs, 0)
            elapsedMs += sentMs + idleMs
        }
        let ready = lastReady
        return stop(Self.roundsMax, ready, sample(Self.roundsMax, ready), fits: false)
    }
    /// Many more than any guest needs.
    private static var roundsMax: Int { 1000 }
    /// A scan, and the way of the last batch.
    private static var leastRoundMs: Double { 1 }

    /// A page of the last round that was written before its turn, and not since, travelled with that round: now it is found to
    /// be the same, and costs nothing.
    ///
    /// - Parameters:
    ///   - ready: pages written since the last round began.
    ///   - sentPages: pages that the last round sent, within `sentMs`; then it waited for `idleMs`.
    ///   - span: where in that time these pages travelled.
    private func changedShare(
        _ ready: Double, _ sentPages: Double, _ sentMs: Double, _ idleMs: Double, _ span: ClosedRange<Double>
    ) -> Double {
        let progress = input.workingSet.demand.progress(running: 1 - gate.slowed)
        func guestMs(since share: Double) -> Double { (idleMs + sentMs * (1 - share)) * progress }
        let since = guestMs(since: span.upperBound)...guestMs(since: span.lowerBound)
        guard ready > 0, input.workingSet.setPages > 0 else { return 1 }
        let sentShare = min(sentPages / max(input.workingSet.setPages, ready), 1)
        let changed = min(input.workingSet.meanDirtied(inMs: since) / ready, 1)
        return 1 - sentShare + sentShare * changed
    }

    private func sample(_ round: Int, _ ready: Double) -> GateSample {
        var sample = GateSample()
        (sample.elapsedMs, sample.round) = (elapsedMs, round)
        sample.linkBytesPerS = max(input.linkBytesPerS, 1)
        sample.ratio = bytesPerPage / Double(Limits.pageBytes)
        sample.canSlowDown = true
        sample.savedBytes = .infinity
        sample.expectStop(gate, input.closing, readyPages: ready, heldPages: 0, pagesMax: input.pages, pagesPerS: 0)
        return sample
    }

    private func leftBytes(_ sample: GateSample) -> Double {
        if case .throughRound = sample.standing { return sample.heldBytes * sample.ratio }
        return (sample.remainingBytes - sample.closedBytes) * sample.ratio
    }

    /// The pause, after the round that was begun.
    private func stop(_ round: Int, _ ready: Double, _ sample: GateSample, fits: Bool) -> Forecast {
        let expected = gate.forecast(sample)
        let leftBytes = leftBytes(sample)
        let isNothing = sample.standing.ms == 0 && leftBytes <= SwitchGate.goodEnoughMs / 1000 * sample.linkBytesPerS
        let beforeMs = elapsedMs + ready * bytesPerPage * msPerByte + sample.noticeMs - sample.standing.ms
        return Forecast(
            ending: !fits ? .tooBusy : isNothing ? .converges : .fits, rounds: round,
            wireBytes: wireBytes + ready * bytesPerPage + leftBytes + SwitchGate.deviceBytes,
            totalMs: input.prepareMs + beforeMs + expected.downtimeMs, downtimeMs: expected.downtimeMs,
            slowedBy: gate.slowed)
    }

    /// The guest moves, and what is left travels whole: nobody at the destination has the old content of a page that is missing.
    private func follow(_ round: Int, _ ready: Double, _ sample: GateSample) -> Forecast {
        var forecast = stop(round, ready, sample, fits: true)
        let againBytes = leftBytes(sample)
        let restBytes = againBytes * input.firstBytesPerPage / max(bytesPerPage, 1)
        let pauseMs = SwitchGate.leastMs(fixedMs: input.fixedDowntimeMs, linkBytesPerS: input.linkBytesPerS)
        forecast.wireBytes += restBytes - againBytes
        forecast.totalMs += pauseMs - forecast.downtimeMs + restBytes / sample.linkBytesPerS * 1000
        forecast.downtimeMs = pauseMs
        return forecast
    }
}
