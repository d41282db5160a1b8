import ApusAPI
import ApusFlow
import ApusQMP
import ApusSystem

/// Moments of the switch-over, for the summary.
struct SwitchMarks: Sendable {
    var gateOpened: Instant?
    /// Since when its vCPUs stood still, before it was stopped.
    var stands: Instant?
    var stopped: Instant?
    var prepared: Instant?
    var committed: Instant?
    var running: Instant?
    /// At the destination: from the last page to SHUT 0, and from the verdict to RESUME.
    var loadMs: Double?
    var resumeMs: Double?
    var fenceMs: Double?
    var predictedDowntimeMs: Double?
    /// The largest share of the time that the vCPUs were made to stand still.
    var slowest: Double?
    /// When memory began to travel.
    var transferring: Instant?
    var installed: [String: String] = [:]
    var destinationCPUS: Double?
    var pull: PullCounts?
    var qemuDowntimeMs: Double?
    var rounds: Int?

    /// Of the guest that was stopped, or stood still already.
    private var paused: Instant? { stands ?? stopped }

    /// From STOP, or when its vCPUs stood still before it, to RESUME. The way back of the last message is taken off: half of
    /// what its round trip took beyond the destination's own time.
    var downtimeMs: Double? {
        guard let paused, let committed, let running else { return nil }
        let resume = resumeMs ?? 0
        let way = max(0, running.ms(since: committed) - resume) / 2
        return committed.ms(since: paused) + way + resume
    }

    var parts: [DowntimePart] {
        guard let stopped, let prepared, let committed, let running else { return [] }
        return [
            stands.map { DowntimePart(name: "vCPUs held until QEMU stops", ms: stopped.ms(since: $0)) },
            DowntimePart(name: "last pages, device state and load", ms: prepared.ms(since: stopped)),
            DowntimePart(name: "hand-over by QEMU and commit", ms: committed.ms(since: prepared)),
            DowntimePart(
                name: "resume", ms: (downtimeMs ?? running.ms(since: stopped)) - committed.ms(since: paused ?? stopped)),
        ].compactMap(\.self)
    }
}

/// Turns counters into progress, and asks the switch gate. Fed every few tens of milliseconds.
struct ProgressMonitor: Sendable {
    private struct Point: Sendable {
        var ns: UInt64
        var wireBytes: UInt64
        var literalBytes: UInt64
        var dataPages: UInt64
        var samePages: UInt64
    }
    /// The vCPUs of a guest that goes by the stream port.
    struct Pedal: Sendable {
        var canSlowDown = false
        /// How long they have stood still so far.
        var stoppedNs: UInt64 = 0
        /// How busy they were before; nil: not known.
        var busyShare: Double?
    }

    private var gate: SwitchGate
    /// The rest is fetched: what does not get less by another round is reason enough to move, and so is this much time; nil:
    /// everything travels first.
    private let followsAfterMs: Double?
    private var points: [Point] = []
    private(set) var round = 0
    private var roundStartNs: UInt64 = 0
    private var roundStartStoppedNs: UInt64 = 0
    private var lastRoundMs = 0.0
    private var dirtyBytesPerS = 0.0
    /// The latest of a guest that goes by the stream port.
    private var streamSample: GateSample?
    private var confirmed: (bytes: UInt64, ns: UInt64) = (0, 0)
    private(set) var stalledMs = 0.0
    private(set) var sample = FlowSample()
    /// Wire bytes when the first pass over all memory was done.
    private(set) var firstRoundBytes: UInt64?
    /// Pages that it had.
    private(set) var firstRoundPages: UInt64?
    private let startNs = Instant.now().ns

    /// Rates are taken over this much of the past.
    private static let windowNs: UInt64 = 1_000_000_000
    /// QEMU compares what is left with its limit this often.
    private static let noticeMs = 100.0

    init(_ gate: SwitchGate, followsAfterMs: Double? = nil) {
        self.gate = gate
        self.followsAfterMs = followsAfterMs
    }

    mutating func cannotHandOver() { gate.cannotHandOver() }

    /// Looks at the guest between QEMU's rounds, a moment ago.
    mutating func saw(_ looks: [TimedLook], nowNs: UInt64) {
        for var look in looks {
            look.endMs = Double(nowNs - startNs) / 1e6
            gate.saw(look)
        }
    }

    /// - Parameter info: nil when QEMU was not asked or did not answer.
    /// - Returns: what to do about a guest that goes by the stream port, and why.
    mutating func take(
        _ flow: FlowSample, _ info: MigrationInfo?, _ pedal: Pedal, nowNs: UInt64, into progress: inout JobProgress
    ) -> (SwitchGate.Decision, Shortfall)? {
        sample = flow
        points.append(
            Point(
                ns: nowNs, wireBytes: flow.wireBytes, literalBytes: flow.literalBytes,
                dataPages: flow.dataPages, samePages: flow.samePages))
        while points.count > 2 && nowNs - points[1].ns > Self.windowNs { points.removeFirst() }
        watchStall(flow, nowNs)
        let first = points[0]
        let seconds = max(Double(nowNs - first.ns) / 1e9, 1e-3)
        progress.elapsedMs = Double(nowNs - startNs) / 1e6
        progress.wireBytes = flow.wireBytes
        progress.rateBytesPerS = Double(flow.wireBytes - first.wireBytes) / seconds
        if let rounds = flow.rounds {
            note(rounds, flow, &progress)
            return nil
        }
        guard let ram = info?.ram else { return nil }

        noteRound(ram, nowNs, pedal)
        var gateSample = GateSample()
        if round >= 2 { endFirstRound(flow) }
        gateSample.elapsedMs = progress.elapsedMs
        gateSample.round = round
        // Hot pages that come again before the switch are in QEMU's count already.
        gateSample.remainingBytes = Double(ram.remaining) + Double(flow.hold?.coldPages ?? 0) * 4096
        gateSample.dirtyBytesPerS = dirtyBytesPerS
        gateSample.roundMs = Double(nowNs - roundStartNs) / 1e6
        gateSample.linkBytesPerS = max(Double(flow.linkBytesPerS), progress.rateBytesPerS)
        if flow.dataPages > first.dataPages {
            (gateSample.ratio, gateSample.changedRatio) = EncodingRatio.of(
                wireBytes: flow.literalBytes - min(first.literalBytes, flow.literalBytes),
                pages: flow.dataPages - first.dataPages,
                samePages: flow.samePages - min(first.samePages, flow.samePages))
        }
        gateSample.unconfirmedBytes = Double(flow.unconfirmedBytes)
        gateSample.savedBytes = Double(flow.plainBytes) - Double(flow.wireBytes)
        (gateSample.noticeMs, gateSample.qemuStops) = (Self.noticeMs, true)
        let expected = gate.expectedPages(inMs: gateSample.roundMs + Self.noticeMs) ?? 0
        gateSample.doubtBytes = min(expected * 4096, Double(ram.total)) * gate.doubt
        gateSample.canSlowDown = pedal.canSlowDown
        if !pedal.canSlowDown { gate.cannotSlowDown() }
        let forecast = gate.forecast(gateSample)
        progress.round = round
        progress.memoryTotalBytes = ram.total
        progress.memoryRemainingBytes = ram.remaining + (flow.hold?.coldPages ?? 0) * 4096
        progress.dirtyRateBytesPerS = dirtyBytesPerS
        progress.predictedDowntimeMs = forecast.downtimeMs
        progress.predictedRemainingMs = forecast.remainingMs
        advance(&progress, done: ram.total > 0 ? 1 - Double(ram.remaining) / Double(ram.total) : 0)
        var decision = gate.decide(gateSample)
        if let followsAfterMs, decision != .open,
            gate.opensToFollow(elapsedMs: progress.elapsedMs, latestMs: followsAfterMs)
        {
            decision = .open
        }
        streamSample = gateSample
        return decision == .wait ? nil : (decision, gate.shortfall(gateSample))
    }

    /// What keeps the guest from being stopped; nil: nobody has looked yet.
    var shortfall: Shortfall? { sample.rounds.map(\.shortfall) ?? streamSample.map(gate.shortfall) }
    /// The pause of a guest that QEMU stops before the gate says so; nil: nobody has looked yet.
    var leastDowntimeMs: Double? { streamSample.map(gate.leastDowntimeMs) }
    /// What the guest was seen to write.
    var history: WorkingSetHistory { sample.rounds?.history ?? gate.history }
    var curve: WorkingSet? { sample.rounds.map(\.curve) ?? gate.curve }

    /// A direct source counts and decides by itself.
    private mutating func note(_ rounds: RoundSample, _ flow: FlowSample, _ progress: inout JobProgress) {
        round = rounds.round
        if round >= 2 { endFirstRound(flow) }
        progress.round = rounds.round
        progress.memoryTotalBytes = rounds.totalBytes
        progress.memoryRemainingBytes = rounds.remainingBytes
        progress.dirtyRateBytesPerS = rounds.dirtyBytesPerS
        progress.predictedDowntimeMs = rounds.predictedDowntimeMs
        let link = max(Double(flow.linkBytesPerS), progress.rateBytesPerS, 1)
        progress.predictedRemainingMs = Double(rounds.remainingBytes) / link * 1000
        advance(
            &progress,
            done: rounds.totalBytes > 0 ? 1 - Double(rounds.remainingBytes) / Double(rounds.totalBytes) : 0)
    }

    private mutating func endFirstRound(_ flow: FlowSample) {
        guard firstRoundBytes == nil else { return }
        firstRoundBytes = flow.wireBytes
        firstRoundPages = flow.dataPages + flow.zeroPages
    }

    /// Without a connection nobody can confirm anything.
    mutating func forgetStall() { confirmed = (0, 0) }

    /// Bytes on the link that nobody confirms.
    private mutating func watchStall(_ flow: FlowSample, _ nowNs: UInt64) {
        let bytes = flow.wireBytes - min(flow.unconfirmedBytes, flow.wireBytes)
        if flow.unconfirmedBytes == 0 || bytes != confirmed.bytes || confirmed.ns == 0 { confirmed = (bytes, nowNs) }
        stalledMs = Double(nowNs - confirmed.ns) / 1e6
    }

    /// QEMU's own dirty rate is renewed once a second at most; short rounds are measured by what they left behind.
    private mutating func noteRound(_ ram: MigrationInfo.RAM, _ nowNs: UInt64, _ pedal: Pedal) {
        let now = Int(ram.dirtySyncCount)
        if now != round {
            if round > 0 {
                let rounds = Double(max(1, now - round))
                lastRoundMs = Double(nowNs - roundStartNs) / 1e6 / rounds
                let stoodMs = Double(pedal.stoppedNs &- roundStartStoppedNs) / 1e6 / rounds
                if lastRoundMs > 1 {
                    gate.saw(busyShare: pedal.busyShare)
                    dirtyBytesPerS = Double(ram.remaining) / (lastRoundMs / 1000)
                    gate.saw(
                        TimedLook(
                            endMs: Double(nowNs - startNs) / 1e6, spanMs: lastRoundMs, stoodMs: stoodMs,
                            pages: Double(ram.remaining) / 4096))
                }
            }
            round = now
            roundStartNs = nowNs
            roundStartStoppedNs = pedal.stoppedNs
        }
        if let pages = ram.dirtyPagesRate, pages > 0, lastRoundMs > 1000 {
            dirtyBytesPerS = Double(pages * (ram.pageSize ?? 4096))
        }
    }

    /// The first round is nine tenths of the way; what follows approaches the end and never steps back.
    private func advance(_ progress: inout JobProgress, done: Double) {
        let fraction = round <= 1 ? 0.9 * done : 0.9 + 0.09 * (1 - 1 / Double(round))
        progress.fraction = max(progress.fraction, min(fraction, 0.99))
    }
}

extension OutgoingMigration {
    /// The record of the finished job.
    func summary() -> JobSummary {
        var sample = transfer?.flow.sample() ?? monitor.sample
        if let server { sample.add(server.sample()) }
        var summary = JobSummary()
        // With pages fetched afterwards it is done when the last one has come.
        summary.totalMs = (marks.pull == nil ? marks.running ?? Instant.now() : Instant.now()).ms(since: started)
        summary.pull = marks.pull.map { PullSummary($0) }
        if summary.pull != nil { summary.pull?.prefetch = prefetchSummary() }
        summary.downtimeMs = marks.downtimeMs
        summary.downtimeParts = marks.parts
        summary.qemuDowntimeMs = marks.qemuDowntimeMs
        summary.predictedDowntimeMs = marks.predictedDowntimeMs
        summary.slowedTo = marks.slowest.map { 1 - $0 }
        summary.slowedMs = marks.slowest.flatMap { _ in transfer?.brake.map { Double($0.stoppedNs) / 1e6 } }
        summary.rounds = marks.rounds ?? status.progress.round
        summary.port = transfer.map { $0.isDirect ? .direct : .stream }
        summary.wireBytes = sample.wireBytes
        summary.firstRoundBytes = monitor.firstRoundBytes
        summary.hotPages = sample.rounds?.heldPages ?? sample.hold?.heldPages
        summary.fenceMs = marks.fenceMs
        if request.verify ?? false {
            summary.verifiedPages = sample.auditedPages
            summary.repairedPages = sample.repairedPages
        }
        if let lineBytes = FlowOptions(for: request, services.config.migrate).lineBytes {
            summary.lines = LineSummary(
                lineBytes: lineBytes, pages: sample.linePages, changedLines: sample.changedLines,
                wireBytes: sample.lineBytes, samePages: sample.samePages, tableBytes: sample.lineTableBytes)
        }
        summary.forms = [
            FormCount(form: "zero", pages: sample.zeroPages, wireBytes: 0),
            FormCount(form: "raw", pages: sample.rawPages, wireBytes: sample.rawPages * 4096),
            FormCount(form: "lz4", pages: sample.lz4Pages, wireBytes: sample.lz4Bytes),
            FormCount(form: "zstd", pages: sample.zstdPages, wireBytes: sample.zstdBytes),
            FormCount(form: "lines", pages: sample.linePages, wireBytes: sample.lineBytes),
            FormCount(form: "same", pages: sample.samePages, wireBytes: 0),
            FormCount(form: "disk", pages: sample.diskPages, wireBytes: sample.bytesOfReferences(sample.diskPages)),
            FormCount(
                form: "snapshot", pages: sample.snapshotPages,
                wireBytes: sample.bytesOfReferences(sample.snapshotPages)),
            FormCount(form: "replaced", pages: sample.hold?.absorbedPages ?? 0, wireBytes: 0),
        ].filter { $0.pages > 0 }
        summary.installed = marks.installed
        summary.sourceCPUS = Double(Instant.processCPUNs() - startCPUNs) / 1e9
        summary.destinationCPUS = marks.destinationCPUS
        return summary
    }
}
