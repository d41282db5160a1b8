import ApusAPI
import ApusFlow
import ApusSystem
import Foundation

/// What is foretold of a job while it runs, to be held against what then was.
struct ForetoldJob: Sendable {
    var basis: ForecastRecord.Basis?
    var atStart: MigrationCost?
    var atGate: MigrationCost?

    /// The first forecast counts.
    mutating func begin(_ cost: MigrationCost?, _ basis: ForecastRecord.Basis) {
        guard atStart == nil, let cost else { return }
        (atStart, self.basis) = (cost, basis)
    }
}

/// Plans that were just made: the migrations that follow them are held against them.
final class RecentPlans: Sendable {
    private let plans = Monitor<[PlanReport]>([])
    private static let keptMax = 64
    private static let validS = 600.0

    func keep(_ plan: PlanReport) { plans.update { $0 = Array(($0 + [plan]).suffix(Self.keptMax)) } }

    /// What was said of this way; nil: nothing, of late.
    func option(vm: String, host: String, maxDowntimeMs: Int, port: MemoryPort, mode: MigrationMode) -> PlanOption? {
        latest(vm: vm, host: host, maxDowntimeMs: maxDowntimeMs)?.options.first { $0.port == port && $0.mode == mode }
    }

    func latest(vm: String, host: String, maxDowntimeMs: Int) -> PlanReport? {
        plans.read { plans in
            plans.last { plan in
                plan.vm == vm && plan.host == host && plan.maxDowntimeMs == maxDowntimeMs
                    && -plan.takenAt.timeIntervalSinceNow < Self.validS
            }
        }
    }
}

extension MigrationCost {
    init(_ forecast: Forecast) {
        self.init(totalMs: forecast.totalMs, wireBytes: forecast.wireBytes, downtimeMs: forecast.downtimeMs)
    }
    init(_ option: PlanOption) {
        self.init(
            totalMs: option.totalMs.likely, wireBytes: option.wireBytes.likely, downtimeMs: option.downtimeMs.likely)
    }
}

extension OutgoingMigration {
    /// What is known of the VM from earlier.
    func recall() async {
        prior = (try? await services.store.history(of: request.vm)) ?? VMHistory()
        // What was learnt must not keep the gate shut for ever.
        let fixedMsMax = max(SwitchGate.fixedMs, Double(request.maxDowntimeMs) / 4)
        prior.fixedDowntimeMs = prior.fixedDowntimeMs.map { min($0, fixedMsMax) }
        chooseMode()
        monitor = ProgressMonitor(
            Self.gate(
                request, services.config.migrate, prior, guestRunning: session.guestRunning,
                ramBytes: machine?.definition.ramBytes ?? 0),
            followsAfterMs: Self.followsAfterMs(
                request, services.config.migrate, guestRunning: session.guestRunning))
    }

    /// Before the first page.
    func foretellStart(_ port: MemoryPort) {
        marks.transferring = Instant.now()
        let plan = services.plans.option(
            vm: request.vm, host: request.host, maxDowntimeMs: request.maxDowntimeMs, port: port,
            mode: request.mode == .plain ? .dsm : request.mode ?? .dsm)
        foretold.begin(plan.map { MigrationCost($0) }, .plan)
        guard request.mode?.pull ?? .nothing == .nothing else { return }
        foretold.begin(foretoldByHistory.map { MigrationCost($0) }, .history)
    }

    /// nil: too little is known of the VM.
    var foretoldByHistory: Forecast? {
        prior.forecast(
            to: request.host, lanes: services.config.link.lanes, maxDowntimeMs: request.maxDowntimeMs,
            slowsDown: ladder.slowsDown, atHour: VMHistory.hour(of: Date()))
    }

    /// As soon as the first pass shows what the link takes, what pages become and how the guest writes.
    func foretellFirstPass(_ flow: FlowSample) {
        guard foretold.atStart == nil, request.mode?.pull ?? .nothing == .nothing, let began = marks.transferring,
            let rounds = flow.rounds, rounds.round == 1, rounds.dataPages > 0, let curve = rounds.curve,
            Instant.now().ms(since: began) > Self.firstDataMs, flow.dataPages > 0, flow.linkBytesPerS > 0
        else { return }
        let bytesPerPage = Double(flow.wireBytes) / Double(flow.dataPages + flow.zeroPages)
        let forecast = Forecast.move(
            ForecastInput(
                pages: Double(rounds.dataPages), firstBytesPerPage: bytesPerPage,
                againBytesPerPage: min(prior.againBytesPerPage ?? bytesPerPage, 4106),
                linkBytesPerS: Double(flow.linkBytesPerS), lanes: services.config.link.lanes, workingSet: curve,
                maxDowntimeMs: Double(request.maxDowntimeMs),
                fixedDowntimeMs: prior.fixedDowntimeMs ?? SwitchGate.fixedMs, prepareMs: began.ms(since: started)),
            slowsDown: ladder.slowsDown)
        foretold.begin(MigrationCost(forecast), .firstPass)
    }
    private static var firstDataMs: Double { 400 }

    /// QEMU stops a guest of which next to nothing is left, whatever it was told; it may do so before the gate has looked.
    func foretellUnaskedStop() {
        guard marks.predictedDowntimeMs == nil else { return }
        let leastMs = monitor.leastDowntimeMs ?? prior.fixedDowntimeMs ?? SwitchGate.fixedMs
        marks.predictedDowntimeMs = leastMs
        if foretold.atGate == nil { foretellGate(downtimeMs: leastMs) }
    }

    func foretellGate(downtimeMs: Double) {
        guard let sample = transfer?.flow.sample() else { return }
        let pagesMs = max(downtimeMs - (prior.fixedDowntimeMs ?? SwitchGate.fixedMs), 0)
        foretold.atGate = MigrationCost(
            totalMs: Instant.now().ms(since: started) + downtimeMs,
            wireBytes: Double(sample.wireBytes) + pagesMs / 1000 * Double(sample.linkBytesPerS), downtimeMs: downtimeMs)
    }

    /// Of a job that has moved its VM: what is to be remembered.
    func remember() async {
        guard let summary = status.summary, let downtimeMs = summary.downtimeMs else { return }
        let flow = monitor.sample
        var known = prior
        known.learn(monitor.history, atHour: VMHistory.hour(of: status.startedAt))
        known.learn(link: Double(flow.linkBytesPerS), to: request.host)
        let isWhole = (summary.pull?.missingPages ?? 0) == 0
        if let predictedMs = marks.predictedDowntimeMs, isWhole {
            let pagesMs = max(predictedMs - (prior.fixedDowntimeMs ?? SwitchGate.fixedMs), 0)
            let fixedMs = max(downtimeMs - pagesMs, Self.leastFixedMs)
            // A stop that something disturbed says nothing of the next.
            if fixedMs <= Self.mostFixedMs { VMHistory.mix(&known.fixedDowntimeMs, fixedMs) }
        }
        VMHistory.mix(&known.prepareMs, marks.transferring.map { $0.ms(since: started) })
        if isWhole { learnBytes(summary, flow, &known) }
        try? await services.store.save(known, of: request.vm)
        try? await services.store.save(
            ForecastRecord(
                job: job, vm: request.vm, host: request.host, endedAt: Date(), port: summary.port,
                basis: foretold.basis,
                atStart: foretold.atStart, atGate: foretold.atGate,
                actual: MigrationCost(
                    totalMs: summary.totalMs, wireBytes: Double(summary.wireBytes), downtimeMs: downtimeMs)))
    }
    /// No stop is free.
    private static var leastFixedMs: Double { 2 }
    private static var mostFixedMs: Double { 100 }

    private func learnBytes(_ summary: JobSummary, _ flow: FlowSample, _ known: inout VMHistory) {
        guard let firstBytes = monitor.firstRoundBytes, let firstPages = monitor.firstRoundPages else { return }
        known.learn(
            VMHistory.Sent(
                firstPages: firstPages, firstBytes: firstBytes, pages: flow.dataPages + flow.zeroPages,
                samePages: flow.samePages, wireBytes: flow.wireBytes))
    }
}
