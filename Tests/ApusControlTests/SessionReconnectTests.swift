import ApusControl
import ApusFlow
import Foundation
import Testing

private let offer = MigrationOffer(
    vm: "vm", definition: "{}", ramBytes: 1 << 29, qemuVersion: "10.0.13", guestRunning: true, reconnectS: 30)
private let point = ResumePoint(framesApplied: [3, 4], streamBytes: 99, layoutKnown: true)
private let terms = TransferTerms(resumes: true)

private func source(_ events: [SourceEvent], _ offer: MigrationOffer = offer) -> SourceSession {
    var session = SourceSession(job: "j", guestRunning: offer.guestRunning)
    for event in [.start(offer), .connected, .received(.ready(terms))] + events { _ = session.handle(event) }
    return session
}

private func destination(_ events: [DestinationEvent]) -> DestinationSession {
    var session = DestinationSession(job: "j")
    for event in [.received(.open(offer)), .qemuReady(terms)] + events { _ = session.handle(event) }
    return session
}

@Suite struct SessionReconnectTests {
    @Test func theStoryInActions() {
        var session = source([])
        #expect(session.handle(.connectionLost) == [.holdTransfer])
        #expect(session.phase == .transferring)
        #expect(session.wantsRetry)
        #expect(session.handle(.retryDue) == [.connect])
        #expect(session.handle(.connected) == [.send(.resume)])
        #expect(session.handle(.retryDue) == [])
        #expect(session.handle(.received(.resumed(point))) == [.resumeTransfer(point)])
        #expect(session.handle(.transferResumed) == [])
        #expect(session.state == .transferring)
        #expect(session.handle(.gateOpened) == [.raiseDowntimeLimit])

        var other = destination([])
        #expect(other.handle(.connectionLost) == [])
        #expect(other.phase == .transferring)
        #expect(other.handle(.retryDue) == [.connect, .send(.cutOff)])
        #expect(other.handle(.connected) == [.send(.cutOff)])
        #expect(other.handle(.received(.resume)) == [.resumeTransfer])
        #expect(other.state == .receiving)
    }

    /// An agent that knows nothing of it gives up at once, as ever.
    @Test func aPeerThatDoesNotKnowItAborts() {
        var old = offer
        old.reconnectS = nil
        for (offer, terms) in [(old, terms), (offer, TransferTerms()), (old, TransferTerms())] {
            var session = SourceSession(job: "j", guestRunning: true)
            for event in [.start(offer), .connected, .received(.ready(terms))] as [SourceEvent] {
                _ = session.handle(event)
            }
            #expect(session.handle(.connectionLost).contains(.releaseQemu))
        }
        var other = DestinationSession(job: "j")
        for event in [.received(.open(offer)), .qemuReady(TransferTerms())] as [DestinationEvent] {
            _ = other.handle(event)
        }
        #expect(other.handle(.connectionLost).first == .discardQemu)
    }

    @Test func aGateThatOpensMeanwhileIsHeld() {
        var session = source([.connectionLost])
        #expect(session.handle(.gateOpened) == [])
        for event in [.connected, .connectionLost, .connected, .received(.resumed(point))] as [SourceEvent] {
            #expect(!session.handle(event).contains(.raiseDowntimeLimit))
        }
        #expect(session.handle(.transferResumed) == [.raiseDowntimeLimit])
    }

    /// A second loss, at each step of the way back.
    @Test(arguments: 0...3) func aSecondLossBeginsAnew(steps: Int) {
        let way: [SourceEvent] = [.connected, .received(.resumed(point)), .transferResumed]
        var session = source([.connectionLost] + way.prefix(steps))
        #expect(session.handle(.connectionLost) == [.holdTransfer])
        // Of the attempt that was lost.
        if steps == 2 { #expect(session.handle(.transferResumed) == []) }
        #expect(session.state == .reconnecting(Reconnection(.dialling)))
        for event in way { _ = session.handle(event) }
        #expect(session.state == .transferring)
    }

    @Test(arguments: [
        SourceEvent.reconnectTimedOut, .userAborted, .deadlinePassed, .qemuDied(watched: true), .qemuStopped,
        .qemuFailed("x"), .qemuCompleted, .localFailed(.init("x", "It broke.")), .received(.resumed(point)),
        .received(.failed(.init(problem: .init("x", "It broke."), copy: .neverRan))),
        .received(.running(ResumeReport())),
    ])
    func whatEndsATransferEndsIt(event: SourceEvent) {
        var session = source([.connectionLost])
        let actions = session.handle(event)
        guard case .record(let record)? = actions.first, case .aborted = record.stage else {
            Issue.record("\(event): \(actions)")
            return
        }
        #expect(actions.contains(.releaseQemu))
    }

    /// Once the guest is stopped a loss means what it always did.
    @Test func notInTheSwitchOver() {
        var session = source([.qemuStopped])
        #expect(session.handle(.connectionLost).contains(.releaseQemu))
        #expect(session.handle(.received(.cutOff)).contains { if case .send(.abort) = $0 { true } else { false } })
    }

    /// All was through before the loss; only a prepared destination asks.
    @Test func aPreparedDestinationIsHeard() {
        var session = source([.connectionLost, .connected])
        #expect(session.handle(.received(.verdictQuery)).last == .deliverShut)
        var other = destination([.connectionLost])
        #expect(other.handle(.loaded(PreparedReport())).last == .send(.prepared(PreparedReport())))
        #expect(other.state == .inDoubt(linked: false))
        #expect(other.handle(.received(.resume)) == [.send(.verdictQuery)])
    }

    @Test func aDestinationWaitsNoLongerThanItsTime() {
        var other = destination([.connectionLost])
        #expect(other.handle(.reconnectTimedOut).first == .discardQemu)
        guard case .send(.failed(let failure))? = other.handle(.received(.resume)).first else {
            Issue.record("no answer")
            return
        }
        #expect(failure.copy == .neverRan)
    }

    /// A source that has given up, restarted or not, says so to a destination that waits for it.
    @Test func theCutOffLearnOfAnAbort() {
        var ended = SourceSession(restoring: .init(job: "j", guestRunning: true, stage: .kept(.agentRestarted)))
        #expect(ended.handle(.received(.cutOff)) == [.send(.abort(SessionFailure.agentRestarted.problem))])
        var other = destination([.connectionLost, .connected])
        #expect(other.handle(.received(.abort(SessionFailure.userAborted.problem))).first == .discardQemu)
    }
}
