//  The destination agent's half of a migration: a pure machine. Events in, actions out; no clock, no I/O, no threads.
//
//     idle --open--> preparing --qemuReady--> receiving --loaded--> [prepared] inDoubt --commit--> [committed] starting
//                        |                        |                  |   |  ^                          |  guestRunning
//                        |   any failure: QEMU is killed             |   |  |  lost connection:        v
//                        +-----------+------------+                  |   |  +- verdictQuery until  [completed]
//                                    v                               |   |     an answer comes
//                              [discarded] <--- abort (or operator) -+   +-- QEMU killed --> [lost] <-- QEMU killed
//
//     pulling: see DestinationSession+Committed.swift.
//     cutOff: see DestinationSession+Reconnect.swift.
//     deciding: the verdict is commit, the database refused [committed]; again at every retry.
//     recovering: after a restart, QEMU is asked.
//
//  [x] is a durable record. Up to [prepared] this side may discard its QEMU at any time: the source still owns the VM.
//  From [prepared] on it may neither run the guest nor discard it without the source's verdict (or its operator's, when
//  the source's host is gone for good). The guest is paused with its disks inactive until [committed] is durable.
//
//  The agent dies (kill -9), and what its successor finds:
//   - no record: it never agreed to anything.
//   - [incoming]: a QEMU may be left over, loaded or not. The source saw the connection break before `prepared` and
//     keeps the VM. -> kill it, [discarded].
//   - [prepared], QEMU paused: in doubt. -> ask.     - [prepared], QEMU dead: [lost], tell the source.
//   - [committed], QEMU paused: `cont`. Running: say `running`. Dead: [lost], it may have run.
//   - [completed]: nothing; above all no `cont`, the operator may have paused the VM since.
//     A late `commit` is answered.
//   - [discarded]: a crash between killing QEMU and the record shows as [prepared] with a dead QEMU, and the source's
//     verdict is `abort` again.

/// The state machine of an incoming migration.
public struct DestinationSession: Sendable {
    /// Each case owns what is valid only there.
    public enum State: Sendable, Equatable {
        case idle
        /// Checks run, QEMU starts with `-incoming defer -S`.
        case preparing
        /// QEMU loads its stream.
        case receiving
        /// The connection is lost; the source, whose VM it is, restores it or lets the time run out.
        case cutOff
        /// Complete, paused, recorded; the verdict is the source's.
        case inDoubt(linked: Bool)
        /// Verdict `commit`; the database refused it.
        case deciding
        /// Committed; the guest is being started.
        case starting
        /// The guest runs, and fetches pages that stayed at the source.
        case pulling(ResumeReport)
        case recovering(DestinationStage)
        case completed(ResumeReport)
        case discarded(SessionFailure)
        /// The copy was complete and its QEMU died.
        case lost(mayHaveRun: Bool)
    }

    public let job: String
    /// False: the guest must come up paused, as its operator left it. Fixed by the offer.
    public private(set) var guestRunning: Bool
    public internal(set) var state: State
    /// Both sides can go on after a lost connection.
    var resumes = false
    /// Pages may be missing: whoever touches one must be answered by this agent, or the guest stands still.
    var pulls = false
    /// Pulling: nobody can give what is missing, as far as is known here.
    var isSourceAway = false

    /// A new session; its first event is the offer.
    public init(job: String) {
        self.job = job
        guestRunning = true
        state = .idle
    }

    /// A session taken up after an agent restart. Unless it is final, its first event is `restarted`.
    public init(restoring record: DestinationRecord) {
        job = record.job
        guestRunning = record.guestRunning
        pulls = record.pulls ?? false
        switch record.stage {
        case .incoming, .prepared, .committed, .pulling: state = .recovering(record.stage)
        case .completed(let report): state = .completed(report)
        case .discarded(let failure): state = .discarded(failure)
        case .lost(let mayHaveRun): state = .lost(mayHaveRun: mayHaveRun)
        }
    }

    /// The answer to a source that speaks of a job of which there is no record; nil: none. `open` begins a session.
    public static func answer(forUnknownJob job: String, to message: SessionMessage) -> SessionMessage? {
        switch message {
        case .abort: .aborted
        // The record of a VM that was ours is never dropped by us. Without it, nothing may be concluded.
        case .commit: .failed(.init(problem: .init("job-unknown", "No migration \(job) here."), copy: .mayHaveRun))
        // It asks before its commit point, so nothing can have run.
        case .resume: .failed(.init(problem: .init("job-unknown", "No migration \(job) here."), copy: .neverRan))
        case .open, .ready, .refused, .prepared, .running, .verdictQuery, .heartbeat, .failed, .aborted, .resumed,
            .cutOff, .sourceLost:
            nil
        }
    }

    /// For people; to be published when the list of actions is performed (see `SourceSession.phase`).
    public var phase: SessionPhase {
        switch state {
        case .idle, .preparing: .preparing
        case .receiving, .cutOff, .recovering(.incoming): .transferring
        case .pulling, .recovering(.pulling): .pulling
        case .inDoubt(linked: true), .deciding, .starting, .recovering(.committed): .committing
        case .inDoubt(linked: false), .recovering: .inDoubt
        case .completed: .completed
        case .discarded(let failure): failure.phase
        case .lost: .failed
        }
    }

    /// While true the runtime sends `retryDue` about once a second.
    public var wantsRetry: Bool {
        switch state {
        case .cutOff, .inDoubt, .deciding, .starting, .pulling, .recovering: true
        case .idle, .preparing, .receiving, .completed, .discarded, .lost: false
        }
    }

    /// Takes one event and says what to do; the contract is that of `SourceSession.handle`.
    public mutating func handle(_ event: DestinationEvent) -> [DestinationAction] {
        if case .becameWhole = event { pulls = false }
        return switch state {
        case .idle: idle(event)
        case .preparing, .receiving: beforePrepared(event)
        case .cutOff: cutOff(event)
        case .inDoubt: inDoubt(event)
        case .deciding: deciding(event)
        case .starting: starting(event)
        case .pulling(let report): pulling(report, event)
        case .recovering(let stage): recovering(stage, event)
        case .completed, .discarded, .lost: ended(event)
        }
    }
}

// MARK: - Up to `prepared`: the source owns the VM, this side may drop it

extension DestinationSession {
    private mutating func idle(_ event: DestinationEvent) -> [DestinationAction] {
        switch event {
        case .received(.open(let offer)):
            guestRunning = offer.guestRunning
            state = .preparing
            // The record first: a QEMU without one would never be found by a successor.
            return [.record(record(.incoming)), .prepareQemu(offer)]
        case .received(.ready), .received(.refused), .received(.prepared), .received(.commit), .received(.abort),
            .received(.running), .received(.verdictQuery), .received(.heartbeat), .received(.failed),
            .received(.aborted), .received(.resume), .received(.resumed), .received(.sourceLost), .received(.cutOff),
            .restarted, .connected,
            .connectionLost,
            .qemuReady, .localFailed, .loaded, .qemuDied, .guestRunning, .guestStartFailed, .qemuObserved,
            .recordFailed, .userAborted, .peerSilent, .retryDue, .reconnectTimedOut, .becameWhole, .sourceSilent,
            .resolve:
            illegal(event)
        }
    }

    private mutating func beforePrepared(_ event: DestinationEvent) -> [DestinationAction] {
        switch event {
        case .qemuReady(let terms):
            guard state == .preparing else { illegal(event) }
            state = .receiving
            resumes = terms.resumes == true
            return [.send(.ready(terms))]
        case .loaded(let report):
            guard state == .receiving else { illegal(event) }
            pulls = report.missingPages != nil
            state = .inDoubt(linked: true)
            return [.record(record(.prepared)), .send(.prepared(report))]
        case .received(let message): return beforePrepared(message)
        case .localFailed(let problem): return discard(.local(problem))
        case .qemuDied: return discard(.qemuDied)
        case .connectionLost: return loseConnection(.connectionLost)
        case .peerSilent: return loseConnection(.peerSilent)
        case .userAborted: return discard(.userAborted)
        case .recordFailed(.incoming, let text): return discard(.recordFailed(text))
        case .retryDue, .reconnectTimedOut, .becameWhole, .sourceSilent: return []
        case .resolve: return [.note(.nothingToResolve)]
        case .restarted, .connected, .guestRunning, .guestStartFailed, .qemuObserved, .recordFailed(.prepared, _),
            .recordFailed(.committed, _), .recordFailed(.pulling, _), .recordFailed(.completed, _),
            .recordFailed(.discarded, _),
            .recordFailed(.lost, _):
            illegal(event)
        }
    }

    private mutating func beforePrepared(_ message: SessionMessage) -> [DestinationAction] {
        switch message {
        case .heartbeat: return []
        case .abort(let problem): return discardAsTold(problem)
        // Its QEMU is dead.
        case .verdictQuery: return discard(.connectionLost)
        // A commit of what was never prepared names no VM that exists here.
        case .open, .ready, .refused, .prepared, .commit, .running, .failed, .aborted, .resume, .resumed, .cutOff,
            .sourceLost:
            return discard(.peerBrokeProtocol(message: message.kind, state: state.name))
        }
    }

    /// Our own failure, before anything depended on us.
    mutating func discard(_ failure: SessionFailure) -> [DestinationAction] {
        let word: SessionMessage =
            state == .preparing
            ? .refused(failure.problem) : .failed(.init(problem: failure.problem, copy: .neverRan))
        state = .discarded(failure)
        return [.discardQemu, .record(record(.discarded(failure))), .send(word), .finish]
    }

    /// The verdict `abort`.
    mutating func discardAsTold(_ problem: SessionProblem) -> [DestinationAction] {
        state = .discarded(.peerFailed(problem))
        return [.discardQemu, .record(record(.discarded(.peerFailed(problem)))), .send(.aborted), .finish]
    }
}

// MARK: - Prepared: paused until the verdict

extension DestinationSession {
    private mutating func inDoubt(_ event: DestinationEvent) -> [DestinationAction] {
        switch event {
        case .received(.commit): return commit()
        case .received(.abort(let problem)): return discardAsTold(problem)
        case .connected:
            state = .inDoubt(linked: true)
            return [.send(.verdictQuery)]
        // It does not know yet that there is nothing left to send.
        case .received(.resume): return [.send(.verdictQuery)]
        case .connectionLost, .peerSilent:
            // Not dialled at once: a host that refuses would be dialled in a loop. `retryDue` sets the pace.
            state = .inDoubt(linked: false)
            return []
        case .retryDue: return [.connect, .send(.verdictQuery)]
        case .qemuDied: return lose(mayHaveRun: false)
        case .qemuObserved(.dead): return lose(mayHaveRun: false)
        // Nothing was said to the source yet: `prepared` follows the record in its list.
        case .recordFailed(.prepared, let text):
            state = .receiving
            return discard(.recordFailed(text))
        case .resolve(let commit):
            // While the source answers, it alone decides.
            guard state == .inDoubt(linked: false) else { return [.note(.sourceAnswers)] }
            if commit { return [.note(.resolvedByOperator)] + self.commit() }
            state = .discarded(.operatorDiscarded)
            return [.discardQemu, .record(record(.discarded(.operatorDiscarded))), .send(.aborted), .finish]
        case .userAborted: return [.note(.tooLate)]
        case .qemuObserved(.running): return [.note(.ranByHand)]
        // The source cannot tell either: an operator has to.
        case .received(.verdictQuery): return []
        case .qemuObserved(.paused), .received(.heartbeat), .localFailed, .reconnectTimedOut, .becameWhole,
            .sourceSilent:
            return []
        case .received(.open), .received(.ready), .received(.refused), .received(.prepared), .received(.running),
            .received(.failed), .received(.aborted), .received(.resumed), .received(.sourceLost), .received(.cutOff):
            return [.note(.ignoredNonsense)]
        case .restarted, .qemuReady, .loaded, .guestRunning, .guestStartFailed, .recordFailed(.incoming, _),
            .recordFailed(.committed, _), .recordFailed(.pulling, _), .recordFailed(.completed, _),
            .recordFailed(.discarded, _),
            .recordFailed(.lost, _):
            illegal(event)
        }
    }

    private mutating func commit() -> [DestinationAction] {
        state = .starting
        return [.record(record(.committed)), .startGuest(paused: !guestRunning)]
    }

    private mutating func deciding(_ event: DestinationEvent) -> [DestinationAction] {
        switch event {
        case .retryDue, .received(.commit), .resolve(commit: true): return commit()
        case .resolve(commit: false), .userAborted: return [.note(.tooLate)]
        // It never ran: `cont` follows the record.
        case .qemuDied, .qemuObserved(.dead): return lose(mayHaveRun: false)
        case .received(.open), .received(.ready), .received(.refused), .received(.prepared), .received(.abort),
            .received(.running), .received(.verdictQuery), .received(.heartbeat), .received(.failed),
            .received(.aborted), .received(.resume), .received(.resumed), .received(.sourceLost), .received(.cutOff),
            .connected,
            .connectionLost, .peerSilent,
            .reconnectTimedOut, .becameWhole, .sourceSilent, .localFailed, .qemuObserved(.paused),
            .qemuObserved(.running):
            return []
        case .restarted, .qemuReady, .loaded, .guestRunning, .guestStartFailed, .recordFailed: illegal(event)
        }
    }

    mutating func lose(mayHaveRun: Bool) -> [DestinationAction] {
        state = .lost(mayHaveRun: mayHaveRun)
        // What has run here stays on record as this host's VM; of what never ran nothing is left.
        let tidy: [DestinationAction] = mayHaveRun ? [] : [.discardQemu]
        return [.record(record(.lost(mayHaveRun: mayHaveRun)))] + tidy
            + [.connect, .send(lossReport(mayHaveRun)), .finish]
    }

    func lossReport(_ mayHaveRun: Bool) -> SessionMessage {
        .failed(.init(problem: .destinationDied, copy: mayHaveRun ? .mayHaveRun : .neverRan))
    }
}

// MARK: - After an agent restart

extension DestinationSession {
    private mutating func recovering(
        _ stage: DestinationStage, _ event: DestinationEvent
    ) -> [DestinationAction] {
        switch event {
        case .restarted:
            switch stage {
            case .incoming:
                state = .receiving
                return discard(.agentRestarted)
            case .prepared, .committed: return pulls ? [.resumePull, .observeQemu] : [.observeQemu]
            case .pulling(let report):
                state = .pulling(report)
                return [.resumePull, .observeQemu]
            case .completed, .discarded, .lost: illegal(event)
            }
        case .qemuObserved(let qemu): return recovered(stage, qemu)
        case .qemuDied: return recovered(stage, .dead)
        case .retryDue: return [.observeQemu]
        case .userAborted, .resolve: return [.note(.tooLate)]
        // Asked again, or said again, once QEMU has answered.
        case .received, .connected, .connectionLost, .peerSilent, .reconnectTimedOut, .becameWhole, .sourceSilent,
            .localFailed:
            return []
        case .qemuReady, .loaded, .guestRunning, .guestStartFailed, .recordFailed: illegal(event)
        }
    }

    private mutating func recovered(
        _ stage: DestinationStage, _ qemu: DestinationQemu
    ) -> [DestinationAction] {
        switch (stage, qemu) {
        case (.prepared, .paused):
            state = .inDoubt(linked: false)
            return [.connect]
        // Not by us: `cont` follows [committed]. The verdict is still the source's.
        case (.prepared, .running):
            state = .inDoubt(linked: false)
            return [.note(.ranByHand), .connect]
        case (.prepared, .dead): return lose(mayHaveRun: false)
        case (.committed, .paused):
            state = .starting
            return [.startGuest(paused: !guestRunning)]
        // `cont` once more does no harm, and its answer tells of what is missing.
        case (.committed, .running) where pulls:
            state = .starting
            return [.startGuest(paused: !guestRunning)]
        case (.committed, .running): return complete(ResumeReport())
        case (.committed, .dead): return lose(mayHaveRun: true)
        case (.incoming, _), (.pulling, _), (.completed, _), (.discarded, _), (.lost, _): illegal(.qemuObserved(qemu))
        }
    }

    func record(_ stage: DestinationStage) -> DestinationRecord {
        DestinationRecord(job: job, guestRunning: guestRunning, stage: stage, pulls: pulls ? true : nil)
    }

    /// A pair that only a mistake of our own can bring about.
    func illegal(_ event: DestinationEvent) -> Never {
        preconditionFailure("destination session \(job): \(event) in state \(state.name)")
    }
}
