internal import ApusSystem

/// Decides when to stop the VM, and what else must be done so that it can be stopped. A pure value.
///
/// ```
///   what is left fits the pause, and      another round, or a moment's patience, makes much less of it      wait
///                                         else                                                              open
///   does not fit, and rounds              get shorter                                                       wait
///                                         do not, twice in a row (once: the curve or a deadline says so,    ladder
///                                         or it was slowed down; not at all: the curve is sure of it)
/// ```
///
/// The ladder, as far as the operator allows: ``Ladder``. History: every look at the guest's writing goes into ``saw(_:)``.
/// Another round is only waited for when its bytes are covered by what compression and zero runs have saved, so that Apus never
/// sends more than plain QEMU would.
public struct SwitchGate: Sendable {
    public enum Decision: Sendable, Equatable {
        case wait
        /// What is left fits the pause: stop the VM.
        case open
        /// Let the vCPUs stand still for this share of the time.
        case slowDown(Double)
        /// Stop the VM; what is left is fetched when it runs at the destination.
        case handOver
        /// Give up; the VM stays.
        case refuse
    }

    /// Loading the device state, hand-over and resume: what a stop costs with nothing left to send, and by how much it may be
    /// more. As measured, of a VM that was never moved.
    public static let fixedMs = 8.0
    static let fixedDoubtMs = 3.0
    /// Wire bytes of the device state of an ordinary VM.
    public static let deviceBytes = 150_000.0
    /// A stop with nothing left to send.
    static func leastMs(fixedMs: Double, linkBytesPerS: Double) -> Double {
        fixedMs + deviceBytes / max(linkBytesPerS, 1) * 1000
    }
    /// A round is worth its bytes if it begins with less than this share of the lowest before it. Rounds against a guest that writes
    /// 0.6 times what the link carries come to 0.55 to 0.7.
    public static let shrink = 0.8
    /// A pause so short that waiting for a shorter one is not worth a round.
    public static let goodEnoughMs = 2.0
    /// The round that a guest stands through may take a tenth longer than the link's rate says.
    static let throughRoundDoubt = 1.1
    /// Once it is open, QEMU has so many of its looks to stop the guest.
    static let noticesToStop = 2.0
    /// A guest that calms down is waited for no longer than this.
    static let calmingMs = 3_000.0

    private let maxDowntimeMs: Double
    let fixedMs: Double
    private var ladder: Ladder
    private var lastRound = 0
    /// What the shortest round began with, and how many came since without being much shorter; both since the last rung.
    private var lowestRoundBytes = Double.infinity
    private var flatRounds = 0
    private var rungRound = 0
    /// When it opened or took its latest rung: what follows takes as long as QEMU's notice.
    private var actedMs = -Double.infinity
    /// Since when what is left has not fitted the pause, whatever was done.
    private var hopelessSinceMs: Double?
    private var calmingSinceMs: Double?
    private var curveMs = -Double.infinity
    public private(set) var history: WorkingSetHistory
    public private(set) var curve: WorkingSet?
    /// The share of the time that the vCPUs were last made to stand still.
    public private(set) var slowed = 0.0
    public private(set) var isOpen = false
    private var isRefused = false

    /// - Parameters:
    ///   - fixedMs: what stops of this VM were seen to cost with nothing left to send.
    ///   - history: what was seen of it before; see ``WorkingSetHistory/asPrior(times:)``.
    ///   - curve: of a guest that is known; nil: that of the history.
    public init(
        maxDowntimeMs: Double, ladder: Ladder = Ladder(), fixedMs: Double = SwitchGate.fixedMs,
        history: WorkingSetHistory = WorkingSetHistory(), curve: WorkingSet? = nil
    ) {
        self.maxDowntimeMs = maxDowntimeMs
        self.ladder = ladder
        self.fixedMs = fixedMs
        self.history = history
        self.curve = curve ?? history.curve
    }

    // MARK: What is expected

    /// A look at what the guest has written.
    ///
    /// - Parameter look: its span is the guest's time; see ``guestMs(_:stoodMs:)``.
    public mutating func saw(_ look: WorkingSetHistory.Look) {
        history.add(look)
        history.forgetPrior()
        // The curve takes some hundred microseconds; rounds may take less.
        guard history.looks.count < 8 || look.endMs - curveMs > 20 else { return }
        curveMs = look.endMs
        curve = history.curve
    }

    /// A look by the clock.
    public mutating func saw(_ look: TimedLook) {
        let guestMs = guestMs(look.spanMs, stoodMs: look.stoodMs)
        saw(WorkingSetHistory.Look(endMs: look.endMs, spanMs: guestMs, pages: look.pages))
    }

    /// A guest that is slowed down is as fast as this one, as looks at it will show.
    mutating func knows(_ guest: WorkingSet) { curve = guest }

    /// What its vCPUs have to do while nobody slows them down.
    ///
    /// - Parameter share: of the busiest of them; see `BusyMeter`. nil: not known.
    public mutating func saw(busyShare share: Double?) {
        guard let share, slowed == 0 else { return }
        history.demand = CPUDemand(share: share)
        curve?.demand = CPUDemand(share: share)
    }

    /// How much of its work a guest has done within `ms` whose vCPUs stood still for `stoodMs` of them, in milliseconds of one
    /// that nobody slows down.
    public func guestMs(_ ms: Double, stoodMs: Double) -> Double {
        let running = max(1 - stoodMs / max(ms, 1e-3), (1 - Brake.hardest) / 2)
        return ms * (history.demand ?? .whole).progress(running: running)
    }

    /// Pages that the guest will probably write within so long, at the speed it has now; nil: nothing is known yet.
    public func expectedPages(inMs ms: Double) -> Double? {
        guard let curve else { return nil }
        let level = min(max(history.trend?.level ?? 1, 1), 2)
        return curve.dirtied(inMs: ms, running: 1 - slowed) * level
    }
    /// Two standard deviations of that, as a share.
    public var doubt: Double { min(2 * (curve?.spread ?? 0), 0.5) }

    public func forecast(_ sample: GateSample) -> GateForecast {
        let link = max(sample.linkBytesPerS, 1)
        let pageBytes = pageBytes(sample)
        let net = link / max(sample.ratio, 1e-6) - sample.dirtyBytesPerS
        let remainingMs = net > 0 ? sample.remainingBytes / net * 1000 + fixedMs : nil
        func pauseMs(_ bytes: Double) -> Double { bytes / link * 1000 + fixedMs + sample.standing.ms }
        if case .throughRound = sample.standing {
            let stopBytes = sample.heldBytes * sample.changedRatio + sample.unconfirmedBytes + Self.deviceBytes
            let doubtMs = sample.standing.ms * (Self.throughRoundDoubt - 1)
            return GateForecast(
                downtimeMs: pauseMs(stopBytes - sample.earlyBytes),
                worstMs: pauseMs(stopBytes) + Self.fixedDoubtMs + Brake.periodMs + doubtMs, stopBytes: stopBytes,
                remainingMs: remainingMs)
        }
        let stopBytes = pageBytes + Self.deviceBytes
        return GateForecast(
            downtimeMs: pauseMs(stopBytes - sample.closedBytes * sample.changedRatio - sample.earlyBytes),
            worstMs: pauseMs(stopBytes + sample.doubtBytes * sample.changedRatio) + Self.fixedDoubtMs,
            stopBytes: stopBytes,
            remainingMs: remainingMs)
    }

    /// What fits the pause first, then the pause that is likely to be shorter.
    func prefers(_ one: GateSample, to other: GateSample) -> Bool {
        let (one, other) = (forecast(one), forecast(other))
        let (fits, otherFits) = (one.worstMs <= maxDowntimeMs, other.worstMs <= maxDowntimeMs)
        return fits == otherFits ? one.downtimeMs < other.downtimeMs : fits
    }

    /// Wire bytes of pages that are left after this round.
    private func pageBytes(_ sample: GateSample) -> Double {
        // Stopping takes QEMU up to 100 ms to notice; meanwhile the round goes on and the guest dirties on.
        let dirtied = sample.dirtyBytesPerS * sample.roundMs / 1000
        return (sample.remainingBytes + dirtied) * sample.changedRatio + sample.unconfirmedBytes
    }

    var mayStand: Bool { ladder.slowsDown }

    /// The pause of a guest that QEMU stops because next to nothing is left.
    public func leastDowntimeMs(_ sample: GateSample) -> Double { forecast(sample.withNothingLeft).downtimeMs }

    /// What it would take.
    public func shortfall(_ sample: GateSample) -> Shortfall {
        let neededMs = forecast(sample).worstMs
        let roundMs = max(sample.remainingBytes * sample.changedRatio / max(sample.linkBytesPerS, 1) * 1000, 1)
        let next = expectedPages(inMs: roundMs).map { $0 * 4096 / roundMs * 1000 }
        return Shortfall(
            dirtyBytesPerS: next ?? sample.dirtyBytesPerS, linkBytesPerS: sample.linkBytesPerS, neededMs: neededMs,
            waitsForQemu: isOpen && neededMs <= maxDowntimeMs, elapsedMs: sample.elapsedMs)
    }

    // MARK: Decisions

    /// True once, when a round has not made less of what is left, or it is time: what is left can be fetched.
    public mutating func opensToFollow(elapsedMs: Double, latestMs: Double) -> Bool {
        guard !isOpen, (lastRound >= 2 && flatRounds > 0) || elapsedMs >= latestMs else { return false }
        isOpen = true
        return true
    }

    /// What is to be done now. Once it is open it only slows the guest down: QEMU may not stop it at once.
    public mutating func decide(_ sample: GateSample) -> Decision {
        if isRefused { return .wait }
        if sample.round != lastRound {
            lastRound = sample.round
            // Against the lowest, not the last: rounds of a steady writer go up and down for ever.
            flatRounds = sample.remainingBytes < Self.shrink * lowestRoundBytes ? 0 : flatRounds + 1
            lowestRoundBytes = min(lowestRoundBytes, sample.remainingBytes)
        }
        if mustHandOver(elapsedMs: sample.elapsedMs) { return handOver() }
        // Nothing is known of the writable working set before the first round is over.
        guard sample.round >= 2 else { return isPastDeadline(sample) ? refuse() : .wait }
        let forecast = forecast(sample)
        guard !isOpen, forecast.worstMs <= maxDowntimeMs else { return climb(sample) }
        hopelessSinceMs = nil
        if isWorthWaiting(sample) { return .wait }
        if slowed > 0, let share = cheaperShare(sample) { return slowDown(share, sample) }
        (isOpen, actedMs) = (true, sample.elapsedMs)
        // It is as slow as can be until QEMU has chosen its moment.
        if sample.qemuStops, slowed > 0 { slowed = Brake.hardest }
        return .open
    }

    private mutating func isWorthWaiting(_ sample: GateSample) -> Bool {
        let pageBytes = pageBytes(sample)
        let pagesMs = pageBytes / max(sample.linkBytesPerS, 1) * 1000
        guard pagesMs > Self.goodEnoughMs, pageBytes < sample.savedBytes, !isLate(sample) else { return false }
        // How fast a guest is that was just slowed down is not known well enough to call it rising.
        if slowed == 0, let trend = history.trend, trend.isRising { return false }
        if flatRounds == 0 { return true }
        // It takes a while to see that a guest has calmed down, which is not worth a pause that is no shorter than half of this one.
        return pagesMs > Self.leastMs(fixedMs: fixedMs, linkBytesPerS: sample.linkBytesPerS) && isCalming(sample)
    }

    /// True for a while only: a guest may pretend for ever.
    private mutating func isCalming(_ sample: GateSample) -> Bool {
        guard let trend = history.trend, trend.isFalling else { return false }
        let since = calmingSinceMs ?? sample.elapsedMs
        calmingSinceMs = since
        return sample.elapsedMs - since < Self.calmingMs
    }

    private mutating func climb(_ sample: GateSample) -> Decision {
        let since = hopelessSinceMs ?? sample.elapsedMs
        hopelessSinceMs = since
        if isPastDeadline(sample), !isOpen { return refuse() }
        if isOpen, sample.elapsedMs - actedMs < Self.noticesToStop * sample.noticeMs { return .wait }
        let isLate = isLate(sample)
        // The curve may say already what another round would show.
        let isHopeless = isHopeless(sample)
        let isFlat = flatRounds >= (isLate || isHopeless || slowed > 0 ? 1 : 2) && sample.round >= rungRound + 2
        guard isFlat || isHopeless && isKnown(sample) && sample.round > rungRound else { return .wait }
        if !isLate, isCalming(sample) { return .wait }
        if let share = nextShare(sample) { return slowDown(share, sample) }
        if isOpen { return .wait }
        if ladder.handsOver { return handOver() }
        return sample.elapsedMs - since > ladder.patienceMs ? refuse() : .wait
    }

    private mutating func slowDown(_ share: Double, _ sample: GateSample) -> Decision {
        (slowed, rungRound, actedMs, hopelessSinceMs) = (share, sample.round, sample.elapsedMs, nil)
        (flatRounds, lowestRoundBytes) = (0, sample.remainingBytes)
        // How far it comes then is a model: what was seen before counts until it is known.
        history = history.asPrior()
        return .slowDown(share)
    }

    private mutating func handOver() -> Decision {
        isOpen = true
        return .handOver
    }

    private mutating func refuse() -> Decision {
        isRefused = true
        return .refuse
    }

    // MARK: The deadline

    private func isPastDeadline(_ sample: GateSample) -> Bool {
        ladder.deadlineMs.map { sample.elapsedMs > $0 } ?? false
    }

    /// The last moment at which a hand-over still keeps the deadline.
    public func mustHandOver(elapsedMs: Double) -> Bool {
        guard ladder.handsOver, !isOpen, let deadlineMs = ladder.deadlineMs else { return false }
        return elapsedMs > deadlineMs - ladder.handOverMs
    }

    /// As the guest goes on, the deadline would be missed.
    private func isLate(_ sample: GateSample) -> Bool {
        guard let deadlineMs = ladder.deadlineMs else { return false }
        let neededMs = curve.flatMap { settle(sample, slowed, $0)?.fitsMs } ?? .infinity
        return neededMs > deadlineMs - ladder.handOverMs - sample.elapsedMs
    }

    // MARK: Slowing down

    /// The mildest share of those that cost hardly more than any other, in time if there is a deadline; if possible one that leaves
    /// the guest some life; nil: with none do the rounds end.
    private func nextShare(_ sample: GateSample) -> Double? {
        guard ladder.slowsDown, sample.canSlowDown else { return nil }
        let harder = Ladder.shares(behind: slowed)
        guard let curve else { return harder.first { 1 - $0 <= (1 - slowed) / 2 } }
        let leftMs = ladder.deadlineMs.map { $0 - ladder.handOverMs - sample.elapsedMs } ?? .infinity
        let ending = harder.compactMap { share in settle(sample, share, curve).map { (share, ms: $0.fitsMs) } }
        let inTime = ending.filter { $0.ms <= leftMs }.map(\.0)
        let alive = inTime.filter { curve.demand.progress(running: 1 - $0) >= Self.aliveProgress }
        let costs = (alive.isEmpty ? inTime : alive).map { ($0, ms: costMs(sample, $0, curve)) }
        guard let leastMs = costs.map(\.ms).min() else { return ending.last?.0 }
        return costs.first { $0.ms <= leastMs * Self.hardlyMore }?.0
    }
    /// With less for as long as a round takes it might as well be stopped, and that was not allowed.
    static let aliveProgress = 0.1
    private static let hardlyMore = 1.1
    private static let pauseWeight = 10.0

    /// For a guest that was slowed down, and whose rounds get no shorter: what costs less than standing through this one; nil: nothing.
    private func cheaperShare(_ sample: GateSample) -> Double? {
        guard case .throughRound(let standMs) = sample.standing, let curve, let share = nextShare(sample) else {
            return nil
        }
        let stopMs = GateSample.stopMs(noticeMs: sample.noticeMs)
        let sendMs = standMs - stopMs
        // What is nothing beside the stop itself is not worth a round.
        guard sendMs > stopMs else { return nil }
        return 2 * sendMs + costMs(sample, share, curve) < Self.pauseWeight * sendMs ? share : nil
    }

    /// What it costs to move a guest that is slowed down so, on average over all that it may need: the time that it takes, the work
    /// that the guest loses meanwhile, and its pause, which is worse than being slow.
    ///
    /// A guest that is slowed down no more than it takes has rounds that hardly get shorter, loses more of its work in sum than one
    /// that stands nearly still for one round, and where a little more is needed than was thought it has lost all for nothing.
    private func costMs(_ sample: GateSample, _ share: Double, _ curve: WorkingSet) -> Double {
        let roundMs = sample.remainingBytes * sample.changedRatio / max(sample.linkBytesPerS, 1) * 1000
        let costs = curve.demand.possible.compactMap { demand -> Double? in
            var guest = curve
            guest.demand = demand
            func costMs(_ share: Double) -> Double? {
                let perMs = 2 - demand.progress(running: 1 - share)
                if let settled = settle(sample, share, guest) {
                    return settled.ms * perMs + settled.leftMs * Self.pauseWeight
                }
                // A round shows that it was too little.
                return Ladder.shares(behind: share).first.flatMap(costMs).map { $0 + roundMs * perMs }
            }
            return costMs(share)
        }
        return costs.isEmpty ? 0 : costs.reduce(0, +) / Double(costs.count)
    }

    /// The vCPUs run as fast as they like, whatever was asked of them.
    public mutating func cannotSlowDown() { slowed = 0 }

    /// Pages cannot be fetched later.
    public mutating func cannotHandOver() { ladder.handsOver = false }

    /// The rounds will not end, as fast as the guest runs now.
    private func isHopeless(_ sample: GateSample) -> Bool {
        curve.map { settle(sample, slowed, $0) == nil } ?? false
    }

    /// The guest was looked at as it runs now, and rounds would not end either if it wrote less than expected by two standard
    /// deviations, or the last one has shown it.
    private func isKnown(_ sample: GateSample) -> Bool {
        let own = history.looks.count { $0.endMs >= 0 }
        guard history.looks.isEmpty || own >= WorkingSetHistory.ownLooks, let curve else { return false }
        return flatRounds > 0 || settle(sample, slowed, curve.scaled(1 - doubt)) == nil
    }

    /// How the rounds end, with the vCPUs stopped for this share of the time; nil: they do not.
    private func settle(_ sample: GateSample, _ share: Double, _ guest: WorkingSet) -> WorkingSet.Settling? {
        let pageMs = sample.changedRatio * 4096 / max(sample.linkBytesPerS, 1) * 1000
        return guest.settle(
            from: max(sample.remainingBytes / 4096, 1), pageMs: pageMs, noticeMs: sample.unsentMs, running: 1 - share,
            freeMs: freeMs(sample, share))
    }

    /// What pages may take of the pause.
    private func freeMs(_ sample: GateSample, _ share: Double) -> Double {
        let leastMs = Self.leastMs(fixedMs: fixedMs, linkBytesPerS: sample.linkBytesPerS)
        let freeMs = maxDowntimeMs - leastMs - Self.fixedDoubtMs
        guard share > 0, !sample.qemuStops else { return freeMs / (1 + doubt) }
        return (freeMs - Brake.periodMs) / Self.throughRoundDoubt - GateSample.stopMs(noticeMs: sample.noticeMs)
    }
}

extension WorkingSetHistory.Trend {
    /// Changes of a fifth within a second, and within what was seen, that are no accident.
    var isRising: Bool { certainty > 0.7 && risePerS * min(spanS, 1) > 0.2 * max(level, 0.1) }
    var isFalling: Bool { certainty > 0.7 && risePerS * min(spanS, 1) < -0.2 * max(level, 0.1) }
}
