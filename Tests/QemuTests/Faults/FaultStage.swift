import ApusAPI
import ApusLab
import Foundation
import Testing

/// When in a migration something breaks.
enum FaultMoment: String, CaseIterable, CustomStringConvertible {
    case setup, firstRound, laterRound, stopped, prepared, committed, starting

    /// All, or those that `APUS_MOMENTS=setup,committed` names.
    static var chosen: [FaultMoment] {
        ProcessInfo.processInfo.environment["APUS_MOMENTS"]?.split(separator: ",").compactMap {
            FaultMoment(rawValue: String($0))
        }
            ?? allCases
    }

    /// The guest may only run at the destination.
    var isPastCommit: Bool { self == .committed || self == .starting }

    var description: String {
        switch self {
        case .setup: "in setup"
        case .firstRound: "in round 1"
        case .laterRound: "in a later round"
        case .stopped: "in the switch-over, the guest stopped"
        case .prepared: "in the switch-over, the destination prepared"
        case .committed: "right after commit"
        case .starting: "as the destination starts the guest"
        }
    }
}

/// Two agents and one proving guest that goes through one fault after another, used only through the `apus` command.
///
/// `here` is the agent that has the guest; a fault after the commit point changes it.
final class FaultStage {
    static let vm = "g"
    /// Makes a round last long enough to be hit.
    static let rate: UInt64 = 200_000_000
    /// Never reached, so that rounds go on and on.
    static let endless = 1
    static let converging = 1500

    let lab: Lab
    let pair: HostPair
    let peer: ApusPeer
    /// `--port` of every migration.
    let port: ApusPeer.Port
    /// `--mode` of every migration.
    let mode: ApusPeer.Mode?
    /// What every guest of it does.
    let workload: Workload
    private(set) var agents: [Agent] = []
    private(set) var console: Console!
    private(set) var here = 0
    private var environments: [[String: String]] = [[:], [:]]

    var source: Agent { agents[here] }
    var destination: Agent { agents[1 - here] }

    private init(
        _ lab: Lab, _ pair: HostPair, _ port: ApusPeer.Port, _ mode: ApusPeer.Mode?, _ workload: Workload,
        _ peer: ApusPeer
    ) {
        self.lab = lab
        self.mode = mode
        self.workload = workload
        self.port = port
        self.pair = pair
        self.peer = peer
    }

    /// Runs `body` with two agents and, unless told otherwise, a guest on the first.
    ///
    /// - Parameters:
    ///   - reconnectS: the agents' link.reconnectS; nil: the default.
    ///   - ramDirectory: the agents' ramDirectory; nil: the default.
    ///   - recordMs: their migrate.recordMs.
    ///   - sourceLossS: their link.sourceLossS; nil: the default.
    ///   - programs: what to run; nil: what is built, and what is installed.
    static func with(
        guest: Bool = true, rate: UInt64? = FaultStage.rate, port: ApusPeer.Port = .auto,
        mode: ApusPeer.Mode? = nil, workload: Workload = FaultStage.workload, reconnectS: Double? = nil,
        ramDirectory: String? = nil, recordMs: Double? = nil, sourceLossS: Double? = nil,
        programs: ((Lab) throws -> (apus: String, qemu: String))? = nil,
        _ body: (FaultStage) async throws -> Void
    ) async throws {
        try await Lab.with(logs: .asked) { lab in
            let (program, qemu) = try programs?(lab) ?? (ApusPeer.findProgram(), QemuProgram.installed)
            var peer = ApusPeer(program: program, qemu: qemu)
            peer.reconnectS = reconnectS
            peer.ramDirectory = ramDirectory
            peer.recordMs = recordMs
            peer.sourceLossS = sourceLossS
            let stage = FaultStage(lab, try await HostPair.make(in: lab, rate: rate), port, mode, workload, peer)
            for index in 0...1 { stage.agents.append(try await stage.startAgent(index)) }
            if guest { try await stage.boot() }
            try await body(stage)
            await stage.console?.close()
        }
    }

    private func startAgent(_ index: Int) async throws -> Agent {
        try await Agent.start(
            ["a", "b"][index], peer, index == 0 ? pair.source : pair.destination, lab, port: 4600 + index,
            environment: environments[index])
    }

    static var workload: Workload {
        var workload = Workload(name: "fault", pattern: .incompressible)
        workload.memoryKiB = 160 * 1024 + 8
        workload.regionMiB = 24
        workload.hotMiB = 12
        workload.pagesPerS = 3000
        return workload
    }

    static var privateMemory: Workload {
        var workload = workload
        workload.ram = .anonymous
        return workload
    }

    /// A new guest on agent `here`.
    func boot() async throws {
        let image = try GuestImage.find()
        let accelerator = await Accelerator.probe(qemu: peer.qemu, image: image)
        await console?.close()
        console = try await source.run(
            workload, as: Self.vm, qemu: peer.qemu, image: image, accelerator: accelerator)
    }

    // MARK: Agents

    /// Starts an agent again after its end.
    func restart(_ agent: Agent) async throws {
        let index = try #require(agents.firstIndex { $0.name == agent.name })
        environments[index] = [:]
        agents[index] = try await startAgent(index)
    }

    /// Sees to it that each agent runs, and holds its sessions before the given action (`startTransfer=2000`). An agent
    /// that must change for it is stopped in good order and started again.
    func rehearse(source sourcePoint: String? = nil, destination destinationPoint: String? = nil) async throws {
        for (index, role, point) in [(here, "source", sourcePoint), (1 - here, "destination", destinationPoint)] {
            let environment = point.map { ["APUS_REHEARSE": "\(role):\($0)"] } ?? [:]
            if let point { agents[index].forgetHold(at: "\(role):\(Self.name(ofPoint: point))") }
            guard environment != environments[index] || agents[index].process.status != nil else { continue }
            environments[index] = environment
            await agents[index].process.stop(graceSeconds: 10)
            agents[index] = try await startAgent(index)
        }
    }

    // MARK: A migration, up to the moment

    /// Begins to move the guest and returns at that moment; what happens next is the test's.
    ///
    /// - Parameter holdMs: how long the agents wait there.
    func begin(_ moment: FaultMoment, holdMs: Int = 1500) async throws -> JobStatus {
        switch moment {
        case .setup: try await begin(heldAt: "source:startTransfer", holdMs: holdMs)
        case .firstRound: try await begin(inRound: 1...1)
        case .laterRound: try await begin(inRound: 2...Int.max)
        case .stopped: try await begin(heldAt: "destination:record-prepared", holdMs: holdMs)
        case .prepared: try await begin(heldAt: "source:deliverShut", holdMs: holdMs)
        case .committed: try await begin(heldAt: "source:send-commit", holdMs: holdMs)
        case .starting: try await begin(heldAt: "destination:startGuest", holdMs: holdMs)
        }
    }

    func begin(inRound rounds: ClosedRange<Int>) async throws -> JobStatus {
        try await rehearse()
        let job = try await migrate(maxDowntimeMs: Self.endless)
        return try await source.job(of: Self.vm, seconds: 30) { now in
            if now.phase.isFinal { return true }
            return now.id == job.id && rounds.contains(now.progress.round) && now.progress.wireBytes > 1 << 20
        }
    }

    /// Without which time it is, and for how long.
    private static func name(ofPoint point: String) -> String { String(point.prefix { !"@=".contains($0) }) }

    /// - Parameter point: `ROLE:POINT`, or `ROLE:POINT@TIME`.
    func begin(heldAt point: String, holdMs: Int) async throws -> JobStatus {
        let words = point.split(separator: ":")
        let action = "\(words[1])=\(holdMs)"
        let isSource = words[0] == "source"
        try await rehearse(source: isSource ? action : nil, destination: isSource ? nil : action)
        let job = try await migrate(maxDowntimeMs: Self.converging)
        let agent = isSource ? source : destination
        do {
            try await wait(for: "the session to be held at \(point)", seconds: 30) {
                agent.isHeld(at: Self.name(ofPoint: point)) ? true : nil
            }
        } catch {
            if let now = try? await source.job(job.id) { Issue.record("\(FaultStage.told(now))") }
            throw error
        }
        return job
    }

    func migrate(maxDowntimeMs: Int, to host: String? = nil) async throws -> JobStatus {
        let text = try await source.apus(
            [
                "migrate", Self.vm, host ?? destination.endpoint, "--detach", "--json", "--max-downtime",
                "\(maxDowntimeMs)", "--port", port.rawValue,
            ] + (mode.map { ["--mode", $0.rawValue] } ?? []))
        return try Agent.decode(JobStatus.self, text)
    }

    // MARK: What must be true afterwards

    /// Waits for the end of the job as the source tells it, and for the guest where it must be; then holds both hosts to
    /// "exactly one, every page right, nothing left over".
    ///
    /// - Parameter moved: the guest belongs to the destination now, which becomes `here`.
    @discardableResult
    func settle(_ job: JobStatus, _ phase: JobPhase, moved: Bool = false, seconds: Double = 20) async throws
        -> JobStatus
    {
        let ended = try await source.end(of: job.id, seconds: seconds)
        #expect(ended.phase == phase, "\(Self.told(ended))")
        if phase == .failed { Self.expectsWords(ended.error) }
        try await expectOneGuest(moved: moved)
        return ended
    }

    /// A connection was lost at that moment, and stands again: while the guest ran the job goes on, and says so.
    ///
    /// A job that begins in a round never ends by itself; it is aborted once it has gone on.
    ///
    /// - Parameter wasHeld: the loss was there before anything could be opened.
    func outlive(_ job: JobStatus, _ moment: FaultMoment, wasHeld: Bool = false) async throws -> JobStatus {
        switch moment {
        case .firstRound, .laterRound:
            let again = try await source.job(of: Self.vm, seconds: 20) { now in
                now.phase.isFinal || now.notes.contains { $0.contains("restored once") }
            }
            #expect(again.phase == .transferring, "\(Self.told(again))")
            let bytes = again.progress.wireBytes
            try await source.job(of: Self.vm, seconds: 20) {
                $0.phase.isFinal || $0.progress.wireBytes > bytes + 1 << 20
            }
            try await source.apus(["job", "abort", job.id])
            return try await settle(job, .aborted)
        case .setup:
            if wasHeld { return try await settle(job, .failed) }
            let ended = try await settle(job, .completed, moved: true)
            #expect(ended.notes.contains { $0.contains("restored once") }, "\(Self.told(ended))")
            return ended
        case .stopped: return try await settle(job, .failed)
        case .prepared, .committed, .starting: return try await settle(job, .completed, moved: true)
        }
    }

    /// The guest runs on the one host, the other has nothing of it, and a full check that began now finds every page right.
    func expectOneGuest(moved: Bool = false) async throws {
        if moved {
            let path = destination.consolePath(of: Self.vm)
            await console.close()
            here = 1 - here
            console = try await Console.connect(path: path)
        }
        let (owner, other) = (source, destination)
        let machine = try await wait(for: "the guest to run on \(owner.name)", seconds: 15, every: .milliseconds(50)) {
            try await owner.machines().first { $0.name == Self.vm && $0.state == .running && $0.job == nil }
        }
        try await wait(for: "agent \(other.name) to have nothing", seconds: 15, every: .milliseconds(50)) {
            try await other.machines().isEmpty && other.machineFiles().isEmpty ? true : nil
        }
        // A QEMU that is asked to quit while it waits for a page is killed after a while.
        try await wait(for: "one QEMU to be left", seconds: 10, every: .milliseconds(50)) {
            lab.strangers == [machine.pid].compactMap(\.self) ? true : nil
        }
        #expect(
            owner.machineFiles().filter { !["console.sock", "qmp.sock", "qemu.log"].contains($0.dropFirst(2)) } == [
                Self.vm
            ])
        try await console.verdicts(console.trace.verdicts.count + 2, seconds: 60)
    }

    static func expectsWords(_ problem: Problem?, code: String? = nil) {
        guard let problem else {
            Issue.record("a failed job says nothing")
            return
        }
        #expect(!problem.code.isEmpty && problem.message.count > 20, "\(problem)")
        #expect(problem.advice?.isEmpty == false, "no advice: \(problem.code): \(problem.message)")
        if let code { #expect(problem.code == code, "\(problem)") }
    }

    static func told(_ job: JobStatus) -> String {
        "\(job.phase.rawValue) \(job.error.map { "\($0.code): \($0)" } ?? "") \(job.notes)"
    }
}

/// One fault at one moment, timed, and named when it fails.
func fault(_ what: String, _ moment: (some CustomStringConvertible)?, _ body: () async throws -> JobStatus?)
    async throws
{
    let name = [what, moment?.description ?? ""].filter { !$0.isEmpty }.joined(separator: " ")
    let started = ContinuousClock.now
    do {
        let job = try await body()
        let seconds = String(format: "%.1f", (ContinuousClock.now - started) / .seconds(1))
        print("fault | \(name) | \(job.map(FaultStage.told) ?? "") | \(seconds) s")
    } catch {
        Issue.record("\(name): \(error)")
        throw error
    }
}
