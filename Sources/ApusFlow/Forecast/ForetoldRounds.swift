internal import ApusMemory

/// The rounds of a source and the decisions of its gate, against the curve of a guest instead of the guest.
struct ForetoldRounds {
    private let input: ForecastInput
    private let movesWhenFlat: Bool
    private let msPerByte: Double
    private var gate: SwitchGate
    /// As it will turn out to be when it is slowed down.
    private let guest: WorkingSet
    /// Its pages, by how often it writes them.
    private let kinds: [Kind]
    private struct Kind {
        var set: WorkingSet
        /// That there are; nil: not known.
        var pages: Double?
        /// Wire bytes of one that has changed.
        var bytesPerPage: Double
    }
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
        var guest = input.workingSet
        guest.demand = guest.demand.likely
        self.guest = guest
        kinds = guest.parts.map { part in
            let bytes = part.set.hasFresh ? input.freshBytesPerPage : input.hotBytesPerPage
            return Kind(set: part.set, pages: part.pages, bytesPerPage: bytes ?? input.againBytesPerPage)
        }
        msPerByte = 1000 / max(input.linkBytesPerS, 1)
        bytesPerPage = input.againBytesPerPage
        wireBytes = input.pages * input.firstBytesPerPage
        elapsedMs = wireBytes * msPerByte
    }

    consuming func run() -> Forecast {
        var last = Copying(
            pages: input.pages, sentMs: elapsedMs, leadMs: leadMs(input.firstBytesPerPage), span: input.writtenSpan)
        var idleMs = 0.0
        var lastReady = Double.infinity
        for round in 2...Self.roundsMax {
            let ready = min(
                guest.dirtied(inMs: last.sentMs + idleMs, running: 1 - gate.slowed), input.pages)
            bytesPerPage = readyBytes(ready, last, idleMs) / max(ready, 1)
            let isShrinking = ready < SwitchGate.shrink * lastReady
            let sample = sample(round, ready)
            if movesWhenFlat && !isShrinking { return follow(round, ready, sample) }
            switch gate.decide(sample) {
            case .open: return movesWhenFlat ? follow(round, ready, sample) : stop(round, ready, sample, fits: true)
            case .refuse, .handOver: return stop(round, ready, sample, fits: false)
            case .slowDown: gate.knows(guest)
            case .wait: break
            }
            lastReady = max(ready, 1)
            wireBytes += ready * bytesPerPage
            last = copying(ready, bytesPerPage)
            idleMs = isShrinking || gate.slowed > 0 ? 0 : max(DirectSource.steadyRoundMs - last.sentMs, 0)
            elapsedMs += last.sentMs + idleMs
        }
        let ready = lastReady
        return stop(Self.roundsMax, ready, sample(Self.roundsMax, ready), fits: false)
    }
    /// Many more than any guest needs.
    private static var roundsMax: Int { 1000 }
    /// A scan, and the way of the last batch.
    private static var leastRoundMs: Double { 1 }

    /// How the pages of a round are copied.
    private struct Copying {
        var pages: Double
        var sentMs: Double
        /// So long before they are through the link.
        var leadMs: Double
        /// Where in this time those travel that were written.
        var span = 0.0...1.0

        /// - Parameter rank: of a page among those that were written, 0 to 1.
        func ms(_ rank: Double) -> Double {
            max((span.lowerBound + rank * (span.upperBound - span.lowerBound)) * sentMs - leadMs, 0)
        }
    }

    private func copying(_ pages: Double, _ bytesPerPage: Double) -> Copying {
        Copying(
            pages: pages, sentMs: max(pages * bytesPerPage * msPerByte, Self.leastRoundMs), leadMs: leadMs(bytesPerPage)
        )
    }

    /// What lies between copying and the link's end: batches that are queued, and what is in flight.
    private func leadMs(_ bytesPerPage: Double) -> Double {
        let queued = Double(Limits.batchesPerLane * Limits.batchPages) * bytesPerPage
        let lanes = Double(input.lanes)
        return lanes * (queued + SendLane.windowBytes(bytesPerNs: input.linkBytesPerS / lanes / 1e9)) * msPerByte
    }

    /// A page that was not written between two copies is found to be the same, and costs nothing:
    ///
    /// ```
    ///   scan                     scan
    ///    |---- written ----x       |       x
    ///                    copied    |     copied again; both rounds go through memory in the same order
    /// ```
    /// - Parameters:
    ///   - ready: pages written since `last` began; it was followed by a wait of `idleMs`.
    /// - Returns: wire bytes of those that have changed.
    private func readyBytes(_ ready: Double, _ last: Copying, _ idleMs: Double) -> Double {
        let running = 1 - gate.slowed
        guard ready > 0 else { return 0 }
        let spanMs = last.sentMs + idleMs
        let written = kinds.map { $0.set.dirtied(inMs: spanMs, running: running) }
        // No more than there are, which is what `ready` is bound by.
        let bound = ready / max(written.reduce(0, +), ready)
        let wholeBytes = zip(kinds, written).reduce(0) { $0 + $1.0.bytesPerPage * $1.1 } * bound
        var bytes = wholeBytes
        // How long this round takes depends on it.
        for _ in 0..<Self.guesses {
            let next = copying(ready, bytes / ready)
            var sameBytes = 0.0
            for index in 0..<Self.ranks {
                let rank = (Double(index) + 0.5) / Double(Self.ranks)
                let untilMs = spanMs + next.ms(rank)
                for kind in kinds {
                    // A page that was not sent then is news.
                    let sentShare = min(last.pages / max(kind.pages ?? input.pages, 1), 1)
                    sameBytes +=
                        sentShare * kind.bytesPerPage
                        * (kind.set.dirtied(inMs: untilMs, running: running)
                            - kind.set.dirtied(inMs: untilMs - last.ms(rank), running: running))
                }
            }
            bytes = max(wholeBytes - sameBytes * bound / Double(Self.ranks), 0)
        }
        return bytes
    }
    private static var guesses: Int { 4 }
    private static var ranks: Int { 16 }

    private func sample(_ round: Int, _ ready: Double) -> GateSample {
        var sample = GateSample()
        (sample.elapsedMs, sample.round) = (elapsedMs, round)
        sample.linkBytesPerS = max(input.linkBytesPerS, 1)
        sample.ratio = bytesPerPage / Double(Limits.pageBytes)
        sample.changedRatio = changedBytesPerPage(inMs: ready * bytesPerPage * msPerByte) / Double(Limits.pageBytes)
        sample.canSlowDown = true
        sample.savedBytes = .infinity
        sample.expectStop(gate, input.closing, readyPages: ready, heldPages: 0, pagesMax: input.pages, pagesPerS: 0)
        return sample
    }

    /// Of what the guest writes within so long: the shorter, the more of it are pages that it writes all the time.
    private func changedBytesPerPage(inMs ms: Double) -> Double {
        let written = kinds.map { $0.set.dirtied(inMs: max(ms, Self.leastRoundMs), running: 1 - gate.slowed) }
        let pages = written.reduce(0, +)
        guard pages > 0 else { return input.againBytesPerPage }
        return zip(kinds, written).reduce(0) { $0 + $1.0.bytesPerPage * $1.1 } / pages
    }

    private func leftBytes(_ sample: GateSample) -> Double {
        if case .throughRound = sample.standing { return sample.heldBytes * sample.changedRatio }
        return (sample.remainingBytes - sample.closedBytes) * sample.changedRatio
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
