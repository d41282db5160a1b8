import ApusAPI
import ApusFabric
import ApusFlow
import ApusMemory
import ApusSystem
import ApusWire
import Logging

// Pages that stay here when the guest moves, and are given to the destination as it asks for them.

extension MigrationMode {
    /// What stays here when the guest moves.
    var pull: FlowOptions.Pull {
        switch self {
        case .plain, .dsm: .nothing
        case .hybrid: .rest
        case .postcopy: .everything
        }
    }
}

extension FlowOptions.Pull {
    /// Asked for by its mode, so that without it there is no migration.
    var isDemanded: Bool { self == .rest || self == .everything }
}

extension OutgoingMigration {
    /// A paused guest gains nothing from moving early.
    var pull: FlowOptions.Pull {
        guard session.guestRunning else { return .nothing }
        let demanded = request.mode?.pull ?? .nothing
        let mayHandOver = canHandOver && request.allows(.postcopy, services.config.migrate)
        return demanded == .nothing && mayHandOver && !(request.verify ?? false) ? .ifNeeded : demanded
    }

    /// Why a request makes no sense, before anything is done; nil: it does.
    nonisolated static func refusal(_ request: MigrateRequest) -> Problem? {
        guard let mode = request.mode, mode.pull != .nothing else { return nil }
        if request.port == .stream {
            return Problem(
                "mode-not-possible",
                "Mode \(mode.rawValue) fetches pages from guest RAM itself, which the stream port cannot.",
                advice: "Leave --port out, or choose --mode plain or dsm.")
        }
        if request.verify ?? false {
            return Problem(
                "mode-not-possible",
                "With mode \(mode.rawValue) memory cannot be compared before the switch: it comes later.",
                advice: "Leave --verify out, or choose --mode plain or dsm.")
        }
        return nil
    }

    static func pullNotPossible(_ vm: String, _ mode: MigrationMode, _ why: String) -> Problem {
        Problem(
            "mode-not-possible",
            "\(vm) cannot move in mode \(mode.rawValue), which needs the direct port on both hosts. \(why)",
            advice: "Choose --mode plain or dsm, or give the VM shared memory (memory-backend-file,share=on on tmpfs).")
    }

    /// The two connections for missing pages, before the guest stops: its devices are loaded with pages missing already.
    func openService(_ memory: DirectMemory) async throws {
        let server = makeServer(memory.layout, memory.serverWindows)
        self.server = server
        try await dialService(server, token)
    }

    private func makeServer(_ layout: Layout, _ windows: [GuestWindow]) -> PullServer {
        PullServer(layout: layout, windows: windows, bytesPerS: request.bandwidthMBps.map { $0 * 1e6 }) { [self] in
            Task { await self.loseLink() }
        }
    }

    private func dialService(_ server: PullServer, _ token: Token) async throws {
        let peer = peer
        try await offPool("apus-dial") {
            for lane in [PullServer.urgentLane, PullServer.pushLane] {
                let hello = Hello(role: .urgent, lane: lane, lanes: 2, token: token)
                try server.attach(try Connection.dial(peer, hello, timeoutMs: SessionTimes.dialMs))
            }
        }
    }

    func serve(token: String) async {
        await connectService(token: token)
        server?.startPushing()
    }

    /// Sees that what somebody waits for can be given.
    func connectService(token text: String) async {
        guard let token = Token(text: text) else { return }
        do {
            if server == nil, isPastCommit { server = try await recoverServer() }
            guard let server else { return }
            if !server.isConnected { try await dialService(server, token) }
        } catch let problem as SessionProblem {
            post(.serviceImpossible(problem))
        } catch {
            link?.cut()
        }
    }

    /// The stopped guest's RAM cannot change any more.
    private var isPastCommit: Bool {
        switch session.state {
        case .committed, .serving: true
        default: false
        }
    }

    func holdService() { server?.hold() }

    /// After a restart: the stopped QEMU still has the guest's RAM.
    ///
    /// - Returns: nil: it does not answer yet.
    /// - Throws: `SessionProblem` when it has gone.
    private func recoverServer() async throws -> PullServer? {
        await observeQemu()
        guard let machine, machine.exit == nil else {
            if case .unresponsive = await services.machines.recover(request.vm, job: job) { return nil }
            throw SessionProblem(
                "pages-lost",
                "The source QEMU of \(request.vm) has ended while no agent held its memory: the pages that were not sent yet are gone.",
                advice:
                    "The VM there stays incomplete: give it up with `apus job resolve JOB --revert`, and restore it.")
        }
        await OutgoingTransfer.takeBackTracker(runDirectory: machine.runDirectory)
        do {
            let access = try DirectAccess(await DirectAccess.examine(machine))
            guard let layout = access.layout else { throw DirectAccess.Obstacle("Its RAM blocks are not usable.") }
            return makeServer(layout, try access.windows())
        } catch {
            logger.warning("serve: \(error)", metadata: ["job": "\(job)"])
            return nil
        }
    }
}

extension PullSummary {
    init(_ counts: PullCounts) {
        self.init(
            missingPages: counts.missingAtFlip, faultedPages: counts.faultedPages, pushedPages: counts.pushedPages,
            faults: counts.faults, faultP50Us: counts.faultP50Us, faultP99Us: counts.faultP99Us,
            faultMaxUs: counts.faultMaxUs, stallMs: counts.stallMs, wholeMs: counts.wholeMs)
    }
}
