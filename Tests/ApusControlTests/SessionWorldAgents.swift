//  What the runtimes of the two agents do with a session's actions: A is the source's, B the destination's.

import ApusControl
import ApusFlow
import ApusMemory

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
