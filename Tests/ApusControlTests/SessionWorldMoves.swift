//  Everything that can happen next in a session world, one atomic move at a time.

import ApusControl
import ApusFlow

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
