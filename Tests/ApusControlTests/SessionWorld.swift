//  A world for the two session machines: two agents with durable records, two modelled QEMUs and one link, single
//  threaded and replayed exactly by its seed. Everything that can happen is one atomic `Move`; an agent performs one
//  action of a list per move, so a kill falls between any two.
//
//     agent A [inbox, todo, record]  <--- toA ---+--- toB --->  agent B [inbox, todo, record]
//          |                                                        |
//     source QEMU: active -> waiting -> answered -> handedOver    destination QEMU: incoming -> loading ->
//                     \-> failing -> running again                      loaded -> running
//
//  `version` counts what the guest did; a copy is as old as the version it was stopped at. Running an older copy is as
//  bad as running two, because the disks are newer than it.

import ApusControl
import ApusFlow
import ApusMemory

/// SplitMix64.
struct Seed: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }
    mutating func chance(_ percent: UInt64) -> Bool { next() % 100 < percent }
    mutating func below(_ bound: Int) -> Int { Int(next() % UInt64(bound)) }
}

/// What goes wrong, and what people and clocks do.
enum Fault: CaseIterable {
    case killAgentA, killAgentB, dropLink, partition, killSource, killDestination, powerLossA, hostAGone, hostBGone
    case abortByUser, abortAtDestination, deadline, silentToA, silentToB, switchTimeout, localFailureA
    case recordFailsA, recordFailsB, sourceRefusesShut, loadFails, prepareFails, startFails
    case reconnectLimitA, reconnectLimitB
}

/// A deliberate mistake; the checker must find it, or it proves nothing.
enum Sabotage: CaseIterable {
    case none
    case destinationRunsWhenPrepared, destinationForgetsPrepared, destinationDiscardsOnLostLink
    case sourceForgetsRecord, commitSentBeforeRecord, shutBeforeRecord, handedOverIsResumed, undecidableCommits
    case lostFramesStayLost, destinationOverstates, flowGoesOnUnheld
    case releasingIsNotOnDisk
    case sourceEndsBeforeWhole, destinationCompletesBeforeWhole, pagerLeavesBeforeWhole
}

enum SourceQemuModel: Equatable {
    case idle, active, waiting, answered, failing, handedOver, ended, killed
}

enum DestinationQemuModel: Equatable {
    case none, incoming
    case loading(Int)
    case loaded(Int)
    case running, gone, killed
}

struct Violation: Error { var text: String }

struct World {
    static let job = "job-1"
    let offer: MigrationOffer
    let sabotage: Sabotage
    var seed: Seed
    var trace: [String]?

    // Agent A.
    var a: SourceSession?
    var aRecord: SourceRecord?
    /// What is on disk, and not in the kernel's hands only.
    var aRecordOnDisk: SourceRecord?
    var aSyncIsDue = false
    var aInbox: [SourceEvent] = []
    var aTodo: [SourceAction] = []
    var aAlive = true
    // Agent B.
    var b: DestinationSession?
    var bRecord: DestinationRecord?
    var bInbox: [DestinationEvent] = []
    var bTodo: [DestinationAction] = []
    var bAlive = true
    // The QEMUs.
    var source = SourceQemuModel.idle
    var guestRuns: Bool
    var limitRaised = false
    var version = 0
    var destination = DestinationQemuModel.none
    // The link.
    enum Parcel {
        case message(SessionMessage)
        /// One frame of pages, by its number.
        case frame(UInt64)
        /// Device state, behind all frames up to this one.
        case streamEnd(version: Int, frames: UInt64)
        /// A page that was missing.
        case page(PageNumber)
    }
    var linkAllowed = true
    var linkUp = false
    /// Counts the connections made.
    var connection = 0
    var toB: [Parcel] = []
    var toA: [SessionMessage] = []
    var flow = FlowModel()
    var pull: PullModel
    // Armed one-shot faults.
    var armed: Set<Fault> = []
    // What the checker remembers.
    var aEverCommitted = false
    var aEverReleasing = false
    var bHeardCommit = false
    var aEverUndecidable = false
    var aHeardLoss = false
    var sourceKilled = false
    /// Killed with its guest stopped for good as far as it knew, and A knowing that B holds the VM.
    var killedAfterPrepared = false
    var destinationKilled = false
    var hostAGone = false
    var hostBGone = false
    var bHeardAbort = false
    var operatorDecided = false
    /// A phase that could not be written down may be forgotten by a successor.
    var aRecordFailed = false
    var bRecordFailed = false
    var aPhase = SessionPhase.preparing
    var bPhase = SessionPhase.preparing
    var marks: Set<String> = []
    var collectsMarks = false

    init(
        seed: UInt64, guestRunning: Bool = true, resumes: Bool = true, pulls: Bool = false, sabotage: Sabotage = .none,
        tracing: Bool = false
    ) {
        self.seed = Seed(state: seed)
        self.sabotage = sabotage
        guestRuns = guestRunning
        pull = PullModel(isWanted: pulls && guestRunning)
        offer = MigrationOffer(
            vm: "vm", definition: "{}", ramBytes: 1 << 29, qemuVersion: "7.2.22", guestRunning: guestRunning,
            reconnectS: resumes ? 30 : nil)
        trace = tracing ? [] : nil
        a = SourceSession(job: World.job, guestRunning: guestRunning)
        aInbox = [.start(offer)]
    }

    var sourceRuns: Bool {
        switch source {
        case .idle, .active: guestRuns
        case .waiting, .answered, .failing, .handedOver, .ended, .killed: false
        }
    }

    mutating func log(_ text: String) {
        trace?.append(text.replacing("ApusControl.", with: ""))
    }
}

// MARK: - Moves

enum Move: Int, CaseIterable {
    case agentA, agentB, deliverToB, deliverToA, source, destination, retryA, retryB, gate, push
}

extension World {
    func isEnabled(_ move: Move) -> Bool {
        switch move {
        case .agentA: aAlive && (!aTodo.isEmpty || aSyncIsDue || (a != nil && !aInbox.isEmpty))
        case .agentB: bAlive && (!bTodo.isEmpty || (b != nil && !bInbox.isEmpty))
        case .deliverToB: linkUp && !toB.isEmpty
        case .deliverToA: linkUp && !toA.isEmpty
        case .source: source == .active || source == .answered || source == .failing
        case .destination: if case .loading = destination { true } else { false }
        case .retryA: aAlive && a?.wantsRetry == true && !aInbox.contains(.retryDue)
        case .retryB: bAlive && b?.wantsRetry == true && !bInbox.contains(.retryDue)
        case .gate: aAlive && a?.state == .transferring && !limitRaised && aInbox.isEmpty && aTodo.isEmpty
        case .push: aAlive && linkUp && pull.service == connection && !pull.toSend.isEmpty
        }
    }

    mutating func perform(_ move: Move) throws {
        switch move {
        case .agentA:
            try stepA()
            // Published when its list is performed: before that, a kill could take the phase back.
            if aTodo.isEmpty, let phase = a?.phase, !aRecordFailed { try World.advance(&aPhase, to: phase) }
        case .agentB:
            try stepB()
            if bTodo.isEmpty, let phase = b?.phase, !bRecordFailed { try World.advance(&bPhase, to: phase) }
        case .deliverToB: try deliverToB()
        case .deliverToA: deliverToA()
        case .source: stepSource()
        case .destination: stepDestination()
        case .retryA: tellA(.retryDue)
        case .retryB: tellB(.retryDue)
        case .gate: tellA(.gateOpened)
        case .push: sendPage()
        }
        try check()
    }

    mutating func tellA(_ event: SourceEvent) { if aAlive, a != nil { aInbox.append(event) } }
    mutating func tellB(_ event: DestinationEvent) { if bAlive, b != nil { bInbox.append(event) } }

    mutating func deliverToB() throws {
        switch toB.removeFirst() {
        case .frame(let number): try flow.apply(number)
        case .page(let page): try installPage(page)
        case .streamEnd(let version, let frames):
            guard destination == .incoming else { return }
            if flow.applied != frames {
                throw Violation(text: "device state before frames \(flow.applied)...\(frames)")
            }
            flow.isStreamWritten = true
            destination = .loading(version)
            flip()
        case .message(let message):
            if b == nil, case .open = message { b = DestinationSession(job: World.job) }
            if b != nil {
                if case .abort = message { bHeardAbort = true }
                if case .commit = message { bHeardCommit = true }
                bInbox.append(.received(message))
            } else if let answer = DestinationSession.answer(forUnknownJob: World.job, to: message) {
                toA.append(answer)
            }
        }
    }

    mutating func deliverToA() {
        let message = toA.removeFirst()
        if a != nil {
            aInbox.append(.received(message))
        } else if message == .verdictQuery || message == .cutOff {
            toB.append(.message(SourceSession.verdict(forUnknownJob: World.job)))
        }
    }

    mutating func stepSource() {
        switch source {
        case .active:
            if guestRuns { version += 1 }
            sendFrame()
            guard limitRaised || seed.chance(10) else { return }
            source = .waiting
            if guestRuns { tellA(.qemuStopped) }
            sendStreamEnd()
        case .answered:
            if armed.remove(.sourceRefusesShut) != nil {
                source = .failing
            } else {
                source = .handedOver
                tellA(.qemuCompleted)
            }
        case .failing:
            source = .idle
            // Now and then the disks cannot be taken back at once, and the guest stays paused.
            if guestRuns, seed.chance(15) { guestRuns = false }
            if guestRuns { version += 1 }
            tellA(.qemuFailed("lost its stream"))
        case .idle, .waiting, .handedOver, .ended, .killed: break
        }
        if trace != nil { log("  source QEMU \(source)") }
    }

    mutating func stepDestination() {
        guard case .loading(let version) = destination else { return }
        // Its stream is complete in the socket's buffer; without an agent it may or may not get to the end of it.
        if armed.remove(.loadFails) != nil || (!bAlive && seed.chance(50)) {
            destination = .gone
            tellB(.localFailed(.init("load-failed", "QEMU refused its stream.")))
        } else {
            destination = .loaded(version)
            tellB(.loaded(PreparedReport(missingPages: pull.isPagerInside ? 1 : nil)))
        }
        if trace != nil { log("  destination QEMU \(destination)") }
    }
}

// MARK: - Agent A's runtime

extension World {
    mutating func stepA() throws {
        if !aTodo.isEmpty { return try performA(aTodo.removeFirst()) }
        if aSyncIsDue {
            aSyncIsDue = false
            aRecordOnDisk = aRecord
            return
        }
        let event = aInbox.removeFirst()
        guard var session = a else { return }
        if case .received(.failed(let failure)) = event, failure.copy == .neverRan, !aEverCommitted {
            aHeardLoss = true
        }
        var actions = session.handle(event)
        if sabotage == .undecidableCommits, session.state == .undecidable {
            actions += session.handle(.resolve(commit: true))
        }
        a = session
        if trace != nil { log("A: \(event) -> \(session.state.name) \(actions)") }
        if collectsMarks { marks.insert(session.state.name) }
        if session.state == .undecidable { aEverUndecidable = true }
        switch sabotage {
        case .commitSentBeforeRecord:
            if case .record(let row)? = actions.first, row.stage == .committed { actions.append(actions.removeFirst()) }
        case .shutBeforeRecord:
            if case .record(let row)? = actions.first, row.stage == .releasing { actions.append(actions.removeFirst()) }
        case .handedOverIsResumed:
            if event == .qemuObserved(.handedOver), actions.isEmpty == false { actions = [.resumeGuest] + actions }
        case .none, .destinationRunsWhenPrepared, .destinationForgetsPrepared, .destinationDiscardsOnLostLink,
            .sourceForgetsRecord, .undecidableCommits, .lostFramesStayLost, .destinationOverstates, .flowGoesOnUnheld,
            .destinationCompletesBeforeWhole, .pagerLeavesBeforeWhole, .releasingIsNotOnDisk:
            break
        case .sourceEndsBeforeWhole: if session.state == .serving, event != .retryDue { actions.append(.endQemu) }
        }
        aTodo = actions
    }

    mutating func performA(_ action: SourceAction) throws {
        if trace != nil { log("  A does \(action)") }
        switch action {
        case .record(let row):
            if armed.remove(.recordFailsA) != nil {
                aTodo = []
                aRecordFailed = true
                // Before anything that is queued: the list and its failure are one step.
                aInbox.insert(.recordFailed(row.stage, "disk full"), at: 0)
                return
            }
            if aEverCommitted {
                switch row.stage {
                case .committed, .serving, .completed, .lost(_, wasCommitted: true): break
                case .started, .releasing, .aborted, .kept, .lost: throw Violation(text: "commit taken back: \(row)")
                }
            }
            if row.stage == .committed, aHeardLoss { throw Violation(text: "commits a copy that it knows lost") }
            aRecord = row
            if row.stage == .committed { aEverCommitted = true }
            if row.stage.isNeededAfterPowerLoss, sabotage != .releasingIsNotOnDisk { aRecordOnDisk = row }
            if row.stage == .committed { aSyncIsDue = true }
        case .connect: connect(fromA: true)
        case .send(let message): if linkUp { toB.append(.message(message)) }
        case .startTransfer:
            if source == .idle { source = .active }
            flow.connection = connection
            pull.isHeldByA = true
        case .serve: serve()
        case .holdService: holdService()
        case .holdTransfer: holdTransfer()
        case .resumeTransfer(let point): resumeTransfer(point)
        case .raiseDowntimeLimit: limitRaised = true
        case .deliverShut:
            guard let stage = bRecord?.stage, stage == .prepared || stage == .lost(mayHaveRun: false) else {
                throw Violation(text: "SHUT 0 although the destination is not prepared")
            }
            guard aRecord?.stage == .releasing else { throw Violation(text: "SHUT 0 before its record") }
            aEverReleasing = true
            if source == .waiting { source = .answered }
        case .releaseQemu:
            if source == .active || source == .waiting || (source == .answered && seed.chance(50)) { source = .failing }
        case .observeQemu: tellA(.qemuObserved(observedSource))
        case .resumeGuest: try resumeSource()
        case .endQemu:
            if !pull.residence.isWhole { throw Violation(text: "the source ends with pages that only it has") }
            if source != .killed, source != .ended { endSource() }
        case .note, .finish: break
        }
    }

    var observedSource: SourceQemu {
        switch source {
        case .idle: .kept(running: guestRuns)
        case .active, .waiting, .answered, .failing: .migrating
        case .handedOver: .handedOver
        case .ended, .killed: .dead
        }
    }

    mutating func resumeSource() throws {
        if !offer.guestRunning { throw Violation(text: "cont on a guest that its operator had paused") }
        switch source {
        case .handedOver:
            guard case .aborted = aRecord?.stage else {
                throw Violation(text: "cont on a postmigrate source without a durable abort")
            }
            source = .idle
            guestRuns = true
            version += 1
        case .idle:
            guestRuns = true
            version += 1
        case .active, .waiting, .answered, .failing, .ended, .killed: break
        }
    }

    mutating func endSource() {
        source = .ended
        tellA(.qemuDied(watched: true))
    }

    mutating func connect(fromA: Bool) {
        if linkUp { return }
        guard linkAllowed, aAlive, bAlive else {
            if fromA { tellA(.connectionLost) } else { tellB(.connectionLost) }
            return
        }
        linkUp = true
        connection += 1
        tellA(.connected)
        tellB(.connected)
    }
}

// MARK: - Agent B's runtime

extension World {
    mutating func stepB() throws {
        if !bTodo.isEmpty { return try performB(bTodo.removeFirst()) }
        let event = bInbox.removeFirst()
        guard var session = b else { return }
        var actions = session.handle(event)
        b = session
        if trace != nil { log("B: \(event) -> \(session.state.name) \(actions)") }
        if collectsMarks { marks.insert(session.state.name) }
        switch sabotage {
        case .destinationRunsWhenPrepared:
            if case .loaded = event { actions.append(.startGuest(paused: false)) }
        case .destinationForgetsPrepared:
            actions.removeAll { if case .record(let row) = $0 { row.stage == .prepared } else { false } }
        case .destinationDiscardsOnLostLink:
            if event == .connectionLost { actions.append(.discardQemu) }
        case .none, .sourceForgetsRecord, .commitSentBeforeRecord, .shutBeforeRecord, .handedOverIsResumed,
            .undecidableCommits, .lostFramesStayLost, .destinationOverstates, .flowGoesOnUnheld, .sourceEndsBeforeWhole,
            .destinationCompletesBeforeWhole, .pagerLeavesBeforeWhole, .releasingIsNotOnDisk:
            break
        }
        bTodo = actions
    }

    mutating func performB(_ action: DestinationAction) throws {
        if trace != nil { log("  B does \(action)") }
        switch action {
        case .record(let row):
            if armed.remove(.recordFailsB) != nil {
                bTodo = []
                bRecordFailed = true
                bInbox.insert(.recordFailed(row.stage, "disk full"), at: 0)
                return
            }
            bRecord = row
        case .prepareQemu:
            if armed.remove(.prepareFails) != nil {
                return tellB(.localFailed(.init("machine-type-missing", "No such machine type.")))
            }
            destination = .incoming
            tellB(
                .qemuReady(
                    TransferTerms(resumes: offer.reconnectS == nil ? nil : true, pulls: pull.isWanted ? true : nil)))
        case .connect: connect(fromA: false)
        case .resumePull: resumePull()
        case .resumeTransfer: if linkUp { toA.append(.resumed(resumePoint)) }
        case .send(let message): if linkUp { toA.append(message) }
        case .startGuest(let paused): try startDestination(paused: paused)
        case .observeQemu: tellB(.qemuObserved(try observedDestination()))
        case .discardQemu: try discardDestination()
        case .note, .finish: break
        }
    }

    mutating func startDestination(paused: Bool) throws {
        switch destination {
        case .loaded(let loadedVersion):
            if armed.remove(.startFails) != nil {
                return tellB(.guestStartFailed(.init("disk-locked", "A disk is locked.")))
            }
            if !aEverCommitted, !operatorDecided { throw Violation(text: "destination starts before the commit point") }
            guard bRecord?.stage == .committed else { throw Violation(text: "destination starts without its record") }
            if loadedVersion != version {
                throw Violation(text: "destination starts version \(loadedVersion), the guest was at \(version)")
            }
            if paused == offer.guestRunning { throw Violation(text: "started paused \(paused), against its operator") }
            if !paused { destination = .running }
            tellB(.guestRunning(withPull(ResumeReport(isPaused: paused))))
        case .running: tellB(.guestRunning(withPull(ResumeReport())))
        case .none, .incoming, .loading, .gone, .killed: break
        }
    }

    func observedDestination() throws -> DestinationQemu {
        switch destination {
        case .loaded: .paused
        case .running: .running
        case .gone, .killed: .dead
        case .none, .incoming, .loading: throw Violation(text: "a destination recorded as prepared is \(destination)")
        }
    }

    mutating func discardDestination() throws {
        if case .loaded = destination {
            switch bRecord?.stage {
            case .prepared:
                if !bHeardAbort, !operatorDecided {
                    throw Violation(text: "a prepared destination is discarded without a verdict")
                }
            case .committed, .pulling, .completed: throw Violation(text: "a committed destination is discarded")
            case nil, .incoming, .discarded, .lost: break
            }
        }
        if destination == .running { throw Violation(text: "a running destination is discarded") }
        if destination != .killed, destination != .none { destination = .gone }
    }

}

// MARK: - Faults

extension World {
    mutating func inject(_ fault: Fault) throws {
        if trace != nil { log("!! \(fault)") }
        switch fault {
        case .killAgentA: killA()
        case .killAgentB: killB()
        case .dropLink: dropLink()
        case .partition:
            linkAllowed = false
            dropLink()
        case .killSource: killSource()
        case .killDestination: killDestination()
        case .powerLossA: powerLossA()
        case .hostAGone:
            hostAGone = true
            killA()
            killSource()
        case .hostBGone:
            hostBGone = true
            killB()
            killDestination()
        case .abortByUser: tellA(.userAborted)
        case .abortAtDestination: tellB(.userAborted)
        case .deadline: tellA(.deadlinePassed)
        case .silentToA: if a?.state != .idle { tellA(.peerSilent) }
        case .silentToB: tellB(.peerSilent)
        case .switchTimeout: if a?.phase == .switching { tellA(.switchOverTimedOut) }
        case .localFailureA: tellA(.localFailed(.init("stream-unknown", "QEMU's stream has an unknown section.")))
        case .reconnectLimitA: if case .reconnecting? = a?.state { tellA(.reconnectTimedOut) }
        case .reconnectLimitB: if b?.state == .cutOff { tellB(.reconnectTimedOut) }
        case .recordFailsA, .recordFailsB, .sourceRefusesShut, .loadFails, .prepareFails, .startFails:
            armed.insert(fault)
        }
        try check()
    }

    mutating func killA() {
        guard aAlive else { return }
        aAlive = false
        a = nil
        aHeardLoss = false
        pull.isHeldByA = false
        pull.service = 0
        aInbox = []
        aTodo = []
        aSyncIsDue = false
        dropLink()
        // QEMU reads what was written before the close; SHUT 0, once delivered, counts.
        if source == .active || source == .waiting { source = .failing }
    }

    mutating func killB() {
        guard bAlive else { return }
        bAlive = false
        b = nil
        pull.isWatchedByB = false
        bInbox = []
        bTodo = []
        dropLink()
        if destination == .incoming { destination = .gone }
    }

    mutating func killSource() {
        guard source != .ended, source != .killed else { return }
        switch source {
        case .waiting, .answered, .handedOver: if aEverReleasing { killedAfterPrepared = true }
        case .idle, .active, .failing, .ended, .killed: break
        }
        source = .killed
        sourceKilled = true
        // An agent whose QMP connection had a gap cannot vouch for what came before the death.
        tellA(.qemuDied(watched: !seed.chance(10)))
    }

    /// The host comes back. What was not on disk may or may not be there.
    mutating func powerLossA() {
        guard aAlive else { return }
        killA()
        killSource()
        if seed.chance(50) {
            aRecord = aRecordOnDisk
            // A word that nobody has heard was not given.
            if aRecord?.stage == .releasing { aEverCommitted = aEverCommitted && bHeardCommit }
            // Its phase may go back.
            aRecordFailed = true
        } else {
            aRecordOnDisk = aRecord
        }
    }

    mutating func killDestination() {
        switch destination {
        case .none, .gone, .killed: return
        case .incoming, .loading, .loaded, .running: break
        }
        destination = .killed
        destinationKilled = true
        tellB(.qemuDied)
    }

    mutating func dropLink() {
        guard linkUp else { return }
        linkUp = false
        toA = []
        toB = []
        tellA(.connectionLost)
        tellB(.connectionLost)
    }

    mutating func restartA() {
        guard !aAlive, !hostAGone else { return }
        if trace != nil { log("!! restart A, record \(String(describing: aRecord?.stage))") }
        aAlive = true
        if sabotage == .sourceForgetsRecord { aRecord = nil }
        guard let row = aRecord else { return }
        a = SourceSession(restoring: row)
        switch row.stage {
        case .started, .releasing, .committed, .serving, .aborted: aInbox = [.restarted]
        case .completed, .kept, .lost: aInbox = []
        }
    }

    mutating func restartB() {
        guard !bAlive, !hostBGone else { return }
        if trace != nil { log("!! restart B, record \(String(describing: bRecord?.stage))") }
        bAlive = true
        guard let row = bRecord else { return }
        b = DestinationSession(restoring: row)
        switch row.stage {
        case .incoming, .prepared, .committed, .pulling: bInbox = [.restarted]
        case .completed, .discarded, .lost: bInbox = []
        }
    }
}
