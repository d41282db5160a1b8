import ApusControl
import ApusFlow
import Foundation
import Testing

private let offer = MigrationOffer(
    vm: "vm", definition: "{}", ramBytes: 1 << 29, qemuVersion: "10.0.13", guestRunning: true)
private let problem = SessionProblem("x", "It broke.")

private func row(_ stage: SourceStage) -> SourceRecord { .init(job: "j", guestRunning: true, stage: stage) }
private func row(_ stage: DestinationStage) -> DestinationRecord {
    .init(job: "j", guestRunning: true, stage: stage)
}

/// A source session after these events.
private func source(_ events: [SourceEvent], guestRunning: Bool = true) -> SourceSession {
    var session = SourceSession(job: "j", guestRunning: guestRunning)
    for event in events { _ = session.handle(event) }
    return session
}
private let toTransferring: [SourceEvent] = [.start(offer), .connected, .received(.ready(TransferTerms()))]
private let toReleasing = toTransferring + [.qemuStopped, .received(.prepared(PreparedReport()))]
private let toCommitted = toReleasing + [.qemuCompleted]

private func destination(_ events: [DestinationEvent]) -> DestinationSession {
    var session = DestinationSession(job: "j")
    for event in events { _ = session.handle(event) }
    return session
}
private let toReceiving: [DestinationEvent] = [.received(.open(offer)), .qemuReady(TransferTerms())]
private let toInDoubt = toReceiving + [.loaded(PreparedReport())]
private let toStarting = toInDoubt + [.received(.commit)]

@Suite struct SourceSessionTests {
    @Test func theStoryInActions() {
        var session = SourceSession(job: "j", guestRunning: true)
        #expect(session.handle(.start(offer)) == [.record(row(.started)), .connect])
        #expect(session.handle(.connected) == [.send(.open(offer))])
        #expect(session.phase == .connecting)
        #expect(session.handle(.received(.ready(TransferTerms()))) == [.startTransfer])
        #expect(session.handle(.gateOpened) == [.raiseDowntimeLimit])
        #expect(session.handle(.qemuStopped) == [.record(row(.releasing))])
        #expect(session.phase == .switching)
        #expect(session.handle(.received(.prepared(PreparedReport()))) == [.deliverShut])
        #expect(session.handle(.qemuCompleted) == [.record(row(.committed)), .connect, .send(.commit)])
        #expect(session.phase == .committing)
        #expect(
            session.handle(.received(.running(ResumeReport()))) == [.endQemu, .record(row(.completed)), .finish])
        #expect(session.phase == .completed)
    }

    /// Until `prepared`, each of these leaves the VM here, recorded first, said second.
    @Test(arguments: [
        SourceEvent.connectionLost, .peerSilent, .deadlinePassed, .userAborted, .switchOverTimedOut,
        .qemuFailed("x"), .qemuCompleted, .localFailed(problem),
        .received(.failed(.init(problem: problem, copy: .neverRan))), .received(.commit), .received(.verdictQuery),
        .received(.running(ResumeReport())), .received(.ready(TransferTerms())), .received(.open(offer)),
    ])
    func failuresBeforePreparedAbort(event: SourceEvent) {
        for events in [toTransferring, toTransferring + [.qemuStopped]] {
            var session = source(events)
            let actions = session.handle(event)
            guard case .record(let first)? = actions.first, case .aborted(let failure) = first.stage else {
                Issue.record("\(event): \(actions)")
                return
            }
            #expect(actions.dropFirst() == [.send(.abort(failure.problem)), .releaseQemu, .observeQemu])
            #expect(session.handle(.qemuObserved(.migrating)) == [])
            #expect(session.handle(.qemuObserved(.kept(running: false))) == [.resumeGuest, .observeQemu])
            #expect(
                session.handle(.qemuObserved(.kept(running: true))) == [.record(row(.kept(failure))), .finish])
            #expect(session.phase == (event == .userAborted ? .aborted : .failed))
        }
    }

    @Test func anAbortAfterShutIsTooLate() {
        var session = source(toReleasing)
        guard case .note(let note)? = session.handle(.userAborted).first else { return #expect(Bool(false)) }
        #expect(note.code == "too-late")
        #expect(session.state == .releasing)
    }

    @Test func aGuestPausedByItsOperatorStaysPaused() {
        var paused = offer
        paused.guestRunning = false
        var session = source([.start(paused), .connected, .received(.ready(TransferTerms()))], guestRunning: false)
        _ = session.handle(.userAborted)
        let actions = session.handle(.qemuObserved(.kept(running: false)))
        #expect(!actions.contains(.resumeGuest))
        #expect(session.phase == .aborted)
    }

    /// A copy lost between SHUT 0 and the commit point: the handed-over guest comes back, after the record.
    @Test func aCopyLostBeforeTheCommitPointBringsTheGuestBack() {
        var session = source(toReleasing)
        let actions = session.handle(.received(.failed(.init(problem: problem, copy: .neverRan))))
        #expect(actions.first == .record(row(.aborted(.peerFailed(problem)))))
        #expect(session.handle(.qemuObserved(.handedOver)) == [.resumeGuest, .observeQemu])
        // A database that refuses the record stops all of it: a successor could still commit.
        var refused = source(toReleasing)
        _ = refused.handle(.received(.failed(.init(problem: problem, copy: .neverRan))))
        let rest = refused.handle(.recordFailed(.aborted(.peerFailed(problem)), "full"))
        #expect(!rest.contains(.releaseQemu) && !rest.contains(.observeQemu))
        #expect(refused.handle(.retryDue).first == .record(row(.aborted(.peerFailed(problem)))))
    }

    @Test func aWatchedDeathInTheWindowCommits() {
        var session = source(toReleasing)
        #expect(session.handle(.qemuDied(watched: true)).contains(.send(.commit)))
        var unwatched = source(toReleasing)
        #expect(!unwatched.handle(.qemuDied(watched: false)).contains(.send(.commit)))
        #expect(unwatched.phase == .inDoubt)
    }

    @Test func aDeathWhileStoppedWaitsForTheCopy() {
        var session = source(toTransferring + [.qemuStopped, .qemuDied(watched: true)])
        #expect(session.state == .orphaned)
        #expect(session.handle(.connectionLost) == [])
        #expect(session.handle(.received(.verdictQuery)).first == .record(row(.committed)))
    }

    @Test func afterARestart() {
        func restored(_ stage: SourceStage) -> [SourceAction] {
            var session = SourceSession(restoring: row(stage))
            return session.handle(.restarted)
        }
        #expect(restored(.started).first == .record(row(.aborted(.agentRestarted))))
        #expect(restored(.releasing) == [.observeQemu])
        #expect(restored(.committed) == [.connect])
        #expect(restored(.aborted(.userAborted)).contains(.observeQemu))
        var dead = SourceSession(restoring: row(.releasing))
        _ = dead.handle(.restarted)
        _ = dead.handle(.qemuObserved(.dead))
        #expect(dead.state == .undecidable)
        #expect(dead.handle(.received(.verdictQuery)) == [])
        #expect(dead.handle(.resolve(commit: true)).first == .record(row(.committed)))
    }

    @Test func finishedSessionsAnswer() {
        var kept = SourceSession(restoring: row(.kept(.userAborted)))
        #expect(kept.handle(.received(.verdictQuery)) == [.send(.abort(SessionFailure.userAborted.problem))])
        var completed = SourceSession(restoring: row(.completed))
        #expect(completed.handle(.received(.verdictQuery)) == [.send(.commit)])
        guard case .abort = SourceSession.verdict(forUnknownJob: "z") else { return #expect(Bool(false)) }
    }

    @Test func aLostCopyAfterTheCommitPointTouchesNothingHere() {
        var session = source(toCommitted)
        let actions = session.handle(.received(.failed(.init(problem: problem, copy: .neverRan))))
        #expect(!actions.contains(.endQemu) && !actions.contains(.resumeGuest))
        #expect(session.phase == .failed)
    }

    @Test func ourOwnMistakesTrap() async {
        await #expect(processExitsWith: .failure) { _ = source([.connected]) }
        await #expect(processExitsWith: .failure) { _ = source([.start(offer), .start(offer)]) }
        await #expect(processExitsWith: .failure) { _ = source([.start(offer), .gateOpened]) }
        await #expect(processExitsWith: .failure) { _ = source(toTransferring + [.connected]) }
        await #expect(processExitsWith: .failure) { _ = source(toTransferring + [.restarted]) }
        await #expect(processExitsWith: .failure) { _ = source(toTransferring + [.qemuObserved(.migrating)]) }
        await #expect(processExitsWith: .failure) { _ = source(toTransferring + [.recordFailed(.committed, "")]) }
        await #expect(processExitsWith: .failure) { _ = source(toReleasing + [.start(offer)]) }
        await #expect(processExitsWith: .failure) { _ = source(toCommitted + [.recordFailed(.started, "")]) }
        await #expect(processExitsWith: .failure) { _ = source(toCommitted + [.restarted]) }
    }
}

@Suite struct DestinationSessionTests {
    @Test func theStoryInActions() {
        var session = DestinationSession(job: "j")
        #expect(session.handle(.received(.open(offer))) == [.record(row(.incoming)), .prepareQemu(offer)])
        #expect(session.handle(.qemuReady(TransferTerms(direct: true))) == [.send(.ready(TransferTerms(direct: true)))])
        #expect(
            session.handle(.loaded(PreparedReport())) == [
                .record(row(.prepared)), .send(.prepared(PreparedReport())),
            ])
        #expect(session.phase == .committing)
        #expect(session.handle(.received(.commit)) == [.record(row(.committed)), .startGuest(paused: false)])
        #expect(session.handle(.received(.commit)) == [])
        let report = ResumeReport(resumeMs: 3)
        #expect(
            session.handle(.guestRunning(report)) == [
                .record(row(.completed(report))), .send(.running(report)), .finish,
            ])
        #expect(session.handle(.received(.commit)) == [.send(.running(report))])
    }

    @Test(arguments: [
        DestinationEvent.connectionLost, .peerSilent, .userAborted, .qemuDied, .localFailed(problem),
        .received(.commit), .received(.ready(TransferTerms())), .received(.verdictQuery), .received(.abort(problem)),
    ])
    func beforePreparedItDiscardsAlone(event: DestinationEvent) {
        for events in [Array(toReceiving.prefix(1)), toReceiving] {
            var session = destination(events)
            #expect(session.handle(event).first == .discardQemu)
            #expect(session.phase.isFinal)
        }
    }

    /// Nothing but a verdict moves a prepared destination.
    @Test(arguments: [
        DestinationEvent.connectionLost, .peerSilent, .userAborted, .retryDue, .connected, .localFailed(problem),
        .received(.open(offer)), .received(.ready(TransferTerms())), .received(.aborted),
        .received(.running(ResumeReport())),
        .resolve(commit: true), .resolve(commit: false),
    ])
    func preparedItWaits(event: DestinationEvent) {
        var session = destination(toInDoubt)
        let actions = session.handle(event)
        #expect(!actions.contains(.discardQemu) && !actions.contains(.startGuest(paused: false)))
        guard case .inDoubt = session.state else { return #expect(Bool(false)) }
    }

    @Test func theOperatorDecidesOnlyWithoutTheSource() {
        var session = destination(toInDoubt + [.connectionLost])
        #expect(session.phase == .inDoubt)
        #expect(session.handle(.resolve(commit: true)).contains(.startGuest(paused: false)))
        var other = destination(toInDoubt + [.connectionLost])
        #expect(other.handle(.resolve(commit: false)).first == .discardQemu)
        #expect(other.handle(.received(.commit)) == [.send(.aborted)])
    }

    @Test func aVerdictThatCannotBeRecordedIsRecordedLater() {
        var session = destination(toStarting)
        _ = session.handle(.recordFailed(.committed, "full"))
        #expect(session.state == .deciding)
        #expect(session.handle(.retryDue) == [.record(row(.committed)), .startGuest(paused: false)])
    }

    @Test func afterARestart() {
        func restored(_ stage: DestinationStage, _ qemu: DestinationQemu) -> [DestinationAction] {
            var session = DestinationSession(restoring: row(stage))
            #expect(session.handle(.restarted) == [.observeQemu])
            return session.handle(.qemuObserved(qemu))
        }
        #expect(restored(.prepared, .paused) == [.connect])
        #expect(restored(.committed, .paused) == [.startGuest(paused: false)])
        #expect(restored(.committed, .running).contains(.send(.running(ResumeReport()))))
        #expect(restored(.prepared, .dead).contains(.record(row(.lost(mayHaveRun: false)))))
        #expect(restored(.committed, .dead).contains(.record(row(.lost(mayHaveRun: true)))))
        var incoming = DestinationSession(restoring: row(.incoming))
        #expect(incoming.handle(.restarted).first == .discardQemu)
        // The operator may have paused it since.
        var completed = DestinationSession(restoring: row(.completed(ResumeReport())))
        #expect(completed.handle(.received(.commit)) == [.send(.running(ResumeReport()))])
    }

    @Test func ourOwnMistakesTrap() async {
        await #expect(processExitsWith: .failure) { _ = destination([.qemuReady(TransferTerms())]) }
        await #expect(processExitsWith: .failure) { _ = destination(toReceiving + [.qemuReady(TransferTerms())]) }
        await #expect(processExitsWith: .failure) { _ = destination(Array(toReceiving.prefix(1)) + [.loaded(.init())]) }
        await #expect(processExitsWith: .failure) { _ = destination(toReceiving + [.guestRunning(.init())]) }
        await #expect(processExitsWith: .failure) { _ = destination(toInDoubt + [.loaded(.init())]) }
        await #expect(processExitsWith: .failure) { _ = destination(toInDoubt + [.guestRunning(.init())]) }
        await #expect(processExitsWith: .failure) { _ = destination(toStarting + [.restarted]) }
        await #expect(processExitsWith: .failure) { _ = destination(toStarting + [.recordFailed(.prepared, "")]) }
    }
}

@Suite struct SessionMessageTests {
    static let all: [SessionMessage] = [
        .open(offer), .ready(TransferTerms(direct: false, reason: "no room")), .refused(problem),
        .prepared(PreparedReport(installed: ["pc.ram": "mapped"])), .commit,
        .abort(problem),
        .running(ResumeReport(resumeMs: 2.5, resumedAtUs: 99, pullToken: "1.2", pull: .init())), .verdictQuery,
        .heartbeat(HeartbeatReport(pages: 7)), .failed(.init(problem: problem, copy: .held)), .aborted, .resume,
        .resumed(ResumePoint(framesApplied: [7, 9], streamBytes: 3, layoutKnown: true)), .cutOff,
        .sourceLost(problem),
    ]

    @Test func everyKindTravels() throws {
        #expect(Set(Self.all.map(\.kind)) == Set(SessionMessage.Kind.allCases))
        for message in Self.all {
            let envelope = SessionEnvelope(job: "job-1", message: message)
            let bytes = try JSONEncoder().encode(envelope)
            #expect(bytes.count <= message.kind.encodedBytesMax)
            #expect(try JSONDecoder().decode(SessionEnvelope.self, from: bytes) == envelope)
        }
    }

    @Test(arguments: [
        #"{"job":"j","kind":"99"}"#, #"{"job":"","kind":"commit"}"#, #"{"kind":"commit"}"#, #"{"job":"j"}"#,
        #"{"job":"j","kind":"failed","body":{"problem":{"code":"a","message":"b"},"copy":"99"}}"#,
        #"{"job":"j","kind":"open","body":{"vm":"v","definition":"","ramBytes":1,"qemuVersion":""}}"#,
        #"{"job":"j","kind":"resumed"}"#,
        #"{"job":"j","kind":"resumed","body":{"framesApplied":[-1],"streamBytes":0,"layoutKnown":true}}"#,
        #"{"job":"j","kind":"resumed","body":{"framesApplied":[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0],"streamBytes":0,"layoutKnown":true}}"#,
    ])
    func nonsenseIsRefused(text: String) {
        #expect(throws: DecodingError.self) {
            try JSONDecoder().decode(SessionEnvelope.self, from: Data(text.utf8))
        }
    }

    @Test func anOfferWithoutMemoryIsRefused() throws {
        var empty = offer
        empty.ramBytes = 0
        let bytes = try JSONEncoder().encode(SessionEnvelope(job: "j", message: .open(empty)))
        #expect(throws: DecodingError.self) { try JSONDecoder().decode(SessionEnvelope.self, from: bytes) }
    }

    @Test func recordsSurviveTheirEncoding() throws {
        let rows = [row(.aborted(.peerBrokeProtocol(message: .commit, state: "x"))), row(.releasing)] as [SourceRecord]
        for row in rows {
            #expect(try JSONDecoder().decode(SourceRecord.self, from: JSONEncoder().encode(row)) == row)
        }
    }
}
