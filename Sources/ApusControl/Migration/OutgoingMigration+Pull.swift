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

    /// Where pages follow the guest, the last of several lanes is handed over to them.
    func offerLanes() -> Int {
        laneCount = max(services.config.link.lanes, pull == .nothing ? 1 : 2)
        return laneCount
    }

    /// Why a request makes no sense, before anything is done; nil: it does.
    nonisolated static func refusal(_ request: MigrateRequest) -> Problem? {
        guard let mode = request.mode, mode.pull != .nothing else { return nil }
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
            "\(vm) cannot move in mode \(mode.rawValue), which reads its memory here past QEMU, and owns it there. \(why)",
            advice: "Choose --mode plain or dsm, or give the VM shared memory (memory-backend-file,share=on on tmpfs).")
    }

    /// What may stay here if the VM goes by the stream port.
    ///
    /// - Returns: what to offer; nil: nothing is to stay, or not so.
    /// - Throws: `Problem` `mode-not-possible` when something must stay and cannot.
    func offerFetchable(_ machine: Machine) async throws -> String? {
        guard pull != .nothing, request.port != .direct else { return nil }
        fetchable = await FetchableMemory(machine).flatMap { $0.isMost(of: machine) ? $0 : nil }
        if fetchable == nil, memory == nil {
            let why = "Its RAM is not found for certain in the memory of its QEMU."
            if pull.isDemanded, let mode = request.mode { throw Self.pullNotPossible(machine.name, mode, why) }
            cannotHandOver(why)
        }
        return fetchable?.offered
    }

    /// Moving first was only a last resort, and is none.
    func cannotHandOver(_ why: String) {
        canHandOver = false
        status.notes.append("\(request.vm) cannot be moved before its memory. \(why)")
    }

    /// The destination says of which blocks pages may be missing there.
    func agreeOnFetchable(_ terms: TransferTerms) {
        guard let machine else { return }
        guard let taken = terms.pulledBlocks.flatMap({ fetchable?.taken($0) }), taken.isMost(of: machine) else {
            let why = terms.reason ?? "The destination cannot own its RAM."
            guard pull.isDemanded, let mode = request.mode else { return cannotHandOver(why) }
            return post(.localFailed(SessionProblem(Self.pullNotPossible(request.vm, mode, why))))
        }
        fetchable = taken
        do { try taken.write(machine.runDirectory) } catch {
            post(.localFailed(SessionProblem("pull-files", error)))
        }
    }

    /// The connection for pages that somebody waits for, before the guest stops: its devices are loaded with pages missing
    /// already. The other one is a lane that has done its work.
    func openService() async throws -> PullServer {
        let server: PullServer
        if let memory {
            server = makeServer(memory.layout, memory.serverPorts, memory.recorded)
        } else if let fetchable {
            server = makeServer(fetchable.layout, fetchable.ports, fetchable.recorded)
        } else {
            preconditionFailure("what stays was agreed on")
        }
        self.server = server
        try await dialService(server, token, [PullServer.urgentLane])
        return server
    }

    /// - Parameter recorded: what the guest used before it moved; a restarted agent does not know it any more.
    private func makeServer(
        _ layout: Layout, _ ports: [BlockPort], _ recorded: Monitor<RecordOutcome> = Monitor(RecordOutcome())
    ) -> PullServer {
        var recorded = recorded
        if let path = services.config.migrate.pushOrderFile {
            var given = RecordOutcome()
            do throws(Problem) { given.record = try PushOrderFile.read(path, layout) } catch {
                given.lack = error.message
            }
            recorded = Monitor(given)
        }
        return PullServer(
            layout: layout, ports: ports, bytesPerS: request.bandwidthMBps.map { $0 * 1e6 },
            prefetch: services.config.migrate.prefetch, recorded: recorded
        ) { [self] in Task { await self.loseLink("a connection for missing pages") } }
    }

    /// The operator does not want to wait for more of the memory to travel.
    func moveNow() throws(Problem) {
        let vm = request.vm
        guard pull != .nothing else {
            throw Problem(
                "postcopy-not-possible",
                "\(vm) moves in mode \((request.mode ?? .dsm).rawValue): all its memory must be there before it does.",
                advice: "Abort the job and begin it again with --mode hybrid, or with --allow postcopy.")
        }
        guard let transfer, session.state == .transferring else {
            let isEarly = session.phase == .preparing
            throw Problem(
                "postcopy-not-possible",
                isEarly ? "\(vm) is not being sent yet." : "\(vm) is moving already: \(session.phase.rawValue).",
                advice: isEarly ? "Ask again in a moment." : nil)
        }
        if transfer.isDirect { transfer.flow.moveNow() } else { handOver(transfer, predictedDowntimeMs: nil) }
        status.notes.append("\(vm) was told to move at once.")
    }

    /// By the stream port an open gate is all it takes: what QEMU sends from then on stays.
    func handOver(_ transfer: OutgoingTransfer, predictedDowntimeMs: Double?) {
        transfer.handOver()
        gateOpens(predictedDowntimeMs: predictedDowntimeMs)
    }

    /// What is told of the order in which pages were given.
    func prefetchSummary() -> PrefetchSummary? {
        guard let server else { return nil }
        let counts = server.prefetched()
        if let lack = counts.lack {
            status.notes.append(
                "What \(request.vm) used before it moved could not be recorded as it should be. \(lack).")
        }
        return PrefetchSummary(counts)
    }

    private func dialService(
        _ server: PullServer, _ token: Token, _ connections: [UInt16] = [PullServer.urgentLane, PullServer.pushLane]
    ) async throws {
        let peer = peer
        try await offPool("apus-dial") {
            for lane in connections {
                let hello = Hello(role: .urgent, lane: lane, lanes: 2, token: token)
                try server.attach(try Connection.dial(peer, hello, timeoutMs: SessionTimes.dialMs))
            }
        }
    }

    func serve(token: String) async {
        await connectService(token: token)
        server?.guestRuns()
    }

    /// Sees that what somebody waits for can be given.
    func connectService(token text: String) async {
        guard let token = Token(text: text) else { return }
        do {
            if server == nil, isPastCommit { server = try await recoverServer() }
            guard let server else { return }
            if needsQemu, machine?.exit != nil { throw SessionProblem.pagesLost(request.vm) }
            if !server.isConnected { try await dialService(server, token) }
        } catch let problem as SessionProblem {
            post(.serviceImpossible(problem))
        } catch {
            link?.cut()
        }
    }

    /// The source QEMU has ended. What is only in its memory, and was not sent, is gone with it: until the commit point a
    /// destination that lacks it has no copy, whatever it has loaded; afterwards its next question for pages finds out.
    func loseQemu() {
        guard needsQemu else { return post(.qemuDied(watched: true)) }
        if case .serving = session.state { return }
        post(.qemuFailed("it ended, and with it pages of its guest that had not been sent."))
        post(.qemuDied(watched: true))
    }

    /// Pages that were not sent are in its memory alone. Of a transfer before a restart it is not known that none were left.
    private var needsQemu: Bool {
        guard let server, server.needsQemu else { return false }
        return transfer?.keepsRest ?? true
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
            throw SessionProblem.pagesLost(request.vm)
        }
        await OutgoingTransfer.takeBackTracker(runDirectory: machine.runDirectory)
        do {
            if let left = try await FetchableMemory.left(machine) { return makeServer(left.layout, left.ports) }
            let access = try DirectAccess(await DirectAccess.examine(machine))
            guard let layout = access.layout else { throw DirectAccess.Obstacle("Its RAM blocks are not usable.") }
            return makeServer(layout, try access.windows().map { .mapped($0) })
        } catch {
            logger.warning("serve: \(error)", metadata: ["job": "\(job)"])
            return nil
        }
    }
}

extension SessionProblem {
    static func pagesLost(_ vm: String) -> SessionProblem {
        SessionProblem(
            "pages-lost",
            "The source QEMU of \(vm) has ended while no agent held its memory: the pages that were not sent yet are gone.",
            advice: "The VM there stays incomplete: give it up with `apus job resolve JOB --revert`, and restore it.")
    }
}

extension PullSummary {
    init(_ counts: PullCounts) {
        self.init(
            missingPages: counts.missingAtFlip, faultedPages: counts.faultedPages, pushedPages: counts.pushedPages,
            faults: counts.faults, faultP50Us: counts.faultP50Us, faultP99Us: counts.faultP99Us,
            faultMaxUs: counts.faultMaxUs, stallMs: counts.stallMs, wholeMs: counts.wholeMs)
        faultHistogram = counts.faultHistogram
        guard let use = counts.use else { return }
        usedPages = UInt64(clamping: use.usedPages)
        foreseenPages = UInt64(clamping: use.foreseenPages)
        foreseenUsedPages = UInt64(clamping: use.foreseenUsedPages)
    }
}

extension PrefetchSummary {
    init(_ counts: PrefetchCounts) {
        self.init(
            order: counts.order.rawValue, nearPages: counts.nearPages, trendPages: counts.trendPages,
            recordedPages: counts.recordedPages, restPages: counts.restPages, lateFaults: counts.lateFaults,
            recordPages: counts.recordPages, recordMs: counts.recordMs, zapMs: counts.zapMs, looksMs: counts.looksMs)
    }
}
