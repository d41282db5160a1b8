import ApusAPI
import ApusFlow
import Foundation

/// Chooses how a VM goes when nobody has said it: what is known of it decides before the first page, without a delay.
///
/// ```
///   a plan of this VM to this host, just made     its best way that is allowed
///   its earlier migrations                        memory first, if that ends; else the VM first, if that is allowed
///   nothing                                       memory first; after the first pass the ladder decides
/// ```
struct ModeChoice {
    let request: MigrateRequest
    let config: AgentConfig.Migrate
    let plan: PlanReport?
    /// Of `VMHistory`; nil: too little is known.
    let known: Forecast?

    /// nil: it was said, or memory is to be compared before the switch.
    var way: ChosenWay? {
        guard request.mode == nil else { return nil }
        if request.verify ?? false { return ChosenWay(mode: .dsm, basis: .firstPass) }
        return planned ?? remembered ?? ChosenWay(mode: .dsm, basis: .firstPass)
    }

    private var planned: ChosenWay? {
        guard let plan, let best = plan.options.first(where: isAllowed) else { return nil }
        // Memory that moves into a file first was not there when the plan was made.
        let isStream = best.port == .stream && !plan.options.contains { $0.port == .direct }
        return ChosenWay(
            mode: best.mode, port: isStream && !(request.rebaseMemory ?? false) ? .stream : nil, basis: .plan)
    }

    private func isAllowed(_ option: PlanOption) -> Bool {
        let port = request.port ?? .auto
        guard port == .auto || option.port == port else { return false }
        return switch option.ending {
        case .converges, .fits: true
        case .slowed: request.allows(.throttle, config)
        case .follows: request.allows(.postcopy, config)
        case .tooBusy: false
        }
    }

    private var remembered: ChosenWay? {
        guard let known else { return nil }
        if known.ending != .tooBusy { return ChosenWay(mode: .dsm, basis: .history) }
        let mayFollow = request.allows(.postcopy, config) && request.port != .stream
        return mayFollow ? ChosenWay(mode: .hybrid, basis: .history) : nil
    }
}

extension OutgoingMigration {
    /// Before anything is done.
    func chooseMode() {
        let plan = services.plans.latest(vm: request.vm, host: request.host, maxDowntimeMs: request.maxDowntimeMs)
        status.chosen =
            session.guestRunning
            ? ModeChoice(request: request, config: services.config.migrate, plan: plan, known: foretoldByHistory).way
            : nil
        guard let way = status.chosen, way.basis != .firstPass else { return }
        if way.mode.pull != .nothing { request.mode = way.mode }
        if let port = way.port, request.port ?? .auto == .auto { request.port = port }
        let from = way.basis == .plan ? "the plan that was made" : "its earlier migrations"
        status.notes.append("Mode \(way.mode.rawValue) was chosen for \(request.vm), from \(from).")
    }

    /// What was chosen cannot be had here: it goes as if nothing had been known.
    func dropChoice(_ why: String) {
        guard let way = status.chosen, way.mode.pull != .nothing, pull.isDemanded else { return }
        request.mode = nil
        status.chosen = ChosenWay(mode: .dsm, basis: .firstPass)
        status.notes.append("Mode \(way.mode.rawValue) is not possible after all. \(why)")
    }
}
