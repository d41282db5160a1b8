//  The source agent's half of a migration: a pure machine. Events in, actions out; no clock, no I/O, no threads.
//
//     idle --start--> connecting --connected--> opening --ready--> transferring --STOP--> switching [releasing]
//                         |                        |                    |                  |     \ QEMU killed
//                         |      any failure, user abort, deadline      |                  |     orphaned
//                         +------------+-----------+----------+---------+------------------+      |    \ `prepared`
//                                      v                                       `prepared`  |      |     |
//            guest back         [aborted]                                                  v      |     |
//    kept <--------------------- aborting <-------- QEMU failed -------------- releasing----------+     |
//    lost <-- QEMU is dead ------+  ^   ^                                    SHUT 0 delivered     |     |
//                                   |   +------ operator: abort --------- undecidable             |     |
//                                   |                                        | operator: commit   |     |
//                                   |  QEMU handed over, or killed without having resumed         |     |
//                                   +---------------------------------+      v                    |     |
//                                     destination lost its copy       |  [committed] <------------+-----+
//                                                                     |   commit, commit, …  --- `failed` --> lost
//     serving: pages stayed here; see SourceSession+Committed.swift.
//     deciding: the database refused [committed] or [aborted]; again  |      | `running`
//     at every retry. recovering: after a restart, QEMU is asked.     |      v
//     reconnecting: see SourceSession+Reconnect.swift.                |      |
//                                                                     +-- completed (own QEMU ended)
//
//  [x] is a durable record, written before anything that follows it. Who may run the guest: this side until [committed]
//  is durable, the destination from then on. This side never resumes a guest that QEMU has handed over (postmigrate)
//  unless [aborted] is durable, which makes every later verdict `abort`.
//
//  The agent dies (kill -9), and what its successor finds:
//   - no record: the job never was. Verdict for an unknown job: `abort` (see `verdict(forUnknownJob:)`).
//   - [started]: SHUT 0 was not delivered, QEMU saw its socket close and resumes. -> [aborted], make sure, `abort`.
//   - [releasing], QEMU still migrating: it has not yet noticed, or not yet read SHUT 0. Ask again.
//   - [releasing], QEMU failed: SHUT 0 did not reach it, it resumed. -> [aborted].
//   - [releasing], QEMU completed: it can never run by itself. The destination is prepared, or SHUT 0 had not been
//     delivered. -> [committed], `commit`.
//   - [releasing], QEMU dead: nobody saw whether it resumed (and wrote its disks) before it died. If it did, the
//     destination's copy is OLDER than the disks, and running it corrupts them. -> undecidable: the destination is asked
//     whether it runs the VM or has lost it; while it is as much in doubt, the operator resolves.
//     A death that this process watched is another matter: QEMU's own words come before its death, so silence means
//     that it never resumed -> [committed].
//   - [committed]: repeat `commit` until `running`.   - [serving]: give the pages that are asked for, if QEMU still lives.
//   - [aborted]: make sure that the guest runs, answer `abort`.
//   - [completed], [kept], [lost]: nothing to do; above all no `cont`, the operator may have paused the VM since.
//
//  The host goes down, and with it QEMU and what was not on disk yet. [releasing] and [aborted] are on disk when their
//  list goes on, [committed] soon after `commit` has left: a sync in the pause would prolong it by as much as the disk
//  takes. [releasing] is written while the last pages travel and is always there first, so the successor of an agent
//  whose [committed] was lost finds [releasing] and a dead QEMU, and asks.
//
//  Between two actions of one list: a record precedes what depends on it, so every prefix of a list is one of the
//  above. [completed] is written after QEMU has ended, so that a QEMU never outlives its record.

/// The state machine of an outgoing migration.
public struct SourceSession: Sendable {
    /// Each case owns what is valid only there.
    public enum State: Sendable, Equatable {
        /// Local checks.
        case idle
        case connecting(MigrationOffer)
        /// The destination checks the offer and starts its QEMU.
        case opening
        case transferring
        /// The connection is lost while the guest runs: the flow is held until it stands again.
        case reconnecting(Reconnection)
        /// The guest is stopped, the rest of the stream travels.
        case switching
        /// QEMU was killed while its guest was stopped. If the destination holds everything, the VM survives there.
        case orphaned
        /// The destination is prepared; SHUT 0 is delivered and QEMU's answer awaited.
        case releasing
        /// The database refused the decision; nothing was said to anybody.
        case deciding(Decision)
        /// QEMU died unobserved: only an operator can know whether the destination's copy is the newest.
        case undecidable
        /// Past the commit point; `linked` while the destination can be reached.
        case committed(linked: Bool)
        /// The guest runs at the destination and the only copy of some pages is here.
        case serving
        /// `wasReleasing`: a successor may not presume `abort`, so the record must be written before going on.
        /// `from`: the phase it was given up in, which people go on seeing until the guest is back.
        case aborting(SessionFailure, wasReleasing: Bool, from: SessionPhase)
        case recovering(SourceStage)
        /// The VM runs at the destination and nothing of it is left here.
        case completed
        /// Not committed; the VM is here as it was before.
        case kept(SessionFailure)
        /// The VM runs nowhere. A QEMU that was handed over is left as it is, paused.
        case lost(SessionFailure, wasCommitted: Bool)
    }

    public enum Decision: Sendable, Equatable {
        case commit
        case abort(SessionFailure)
    }

    public let job: String
    /// False: the guest was paused by its operator and stays paused, here or there.
    public let guestRunning: Bool
    public internal(set) var state: State
    /// Both sides can go on after a lost connection.
    var resumes = false
    /// [releasing] is on record.
    private var mayRelease = false

    /// A new session, in `idle`.
    public init(job: String, guestRunning: Bool) {
        self.job = job
        self.guestRunning = guestRunning
        state = .idle
    }

    /// A session taken up after an agent restart. Unless it is final, its first event is `restarted`.
    public init(restoring record: SourceRecord) {
        job = record.job
        guestRunning = record.guestRunning
        mayRelease = record.stage == .releasing
        switch record.stage {
        case .started, .releasing, .committed, .serving, .aborted: state = .recovering(record.stage)
        case .completed: state = .completed
        case .kept(let failure): state = .kept(failure)
        case .lost(let failure, let wasCommitted): state = .lost(failure, wasCommitted: wasCommitted)
        }
    }

    /// The answer to a destination that asks about a job of which there is no record: without `releasing` nothing can
    /// have been committed. Only an agent that has read all its records may say so.
    public static func verdict(forUnknownJob job: String) -> SessionMessage {
        .abort(.init("job-unknown", "The source has no migration \(job): it was not committed."))
    }

    /// For people. To be published when the list of actions is performed: between the transition and its record a kill
    /// would show a finished job unfinished again.
    public var phase: SessionPhase {
        switch state {
        case .idle: .preparing
        case .connecting, .opening: .connecting
        case .transferring, .reconnecting: .transferring
        case .switching, .orphaned: .switching
        case .releasing, .deciding, .committed(linked: true): .committing
        case .recovering(.serving): .pulling
        case .undecidable, .committed(linked: false), .recovering: .inDoubt
        case .serving: .pulling
        case .aborting(_, _, let from): from
        case .completed: .completed
        case .kept(let failure): failure.phase
        case .lost: .failed
        }
    }

    /// While true the runtime sends `retryDue` about once a second.
    public var wantsRetry: Bool {
        switch state {
        case .releasing, .deciding, .undecidable, .committed, .serving, .aborting, .recovering, .orphaned,
            .reconnecting:
            true
        case .idle, .connecting, .opening, .transferring, .switching, .completed, .kept, .lost: false
        }
    }

    /// Takes one event and says what to do. The runtime performs the whole list, in order, before the next event; when
    /// a `record` fails it drops the rest of the list and sends `recordFailed`.
    public mutating func handle(_ event: SourceEvent) -> [SourceAction] {
        if case .recordFailed(.releasing, _) = event { mayRelease = false }
        return switch state {
        case .idle: idle(event)
        case .connecting, .opening, .transferring, .switching: beforePrepared(event)
        case .reconnecting(let reconnection): reconnecting(reconnection, event)
        case .orphaned: orphaned(event)
        case .releasing: releasing(event)
        case .deciding(let decision): deciding(decision, event)
        case .undecidable: undecidable(event)
        case .committed: committed(event)
        case .serving: serving(event)
        case .aborting(let failure, let wasReleasing, _): aborting(failure, wasReleasing: wasReleasing, event)
        case .recovering(let stage): recovering(stage, event)
        case .completed, .kept, .lost: ended(event)
        }
    }
}

// MARK: - Up to `prepared`: every failure leaves the VM here

extension SourceSession {
    private mutating func idle(_ event: SourceEvent) -> [SourceAction] {
        switch event {
        case .start(let offer):
            precondition(offer.guestRunning == guestRunning, "the offer describes another guest")
            state = .connecting(offer)
            resumes = offer.reconnectS != nil
            return [.record(record(.started)), .connect]
        case .localFailed(let problem): return giveUpBeforeStart(.kept(.local(problem)))
        case .userAborted: return giveUpBeforeStart(.kept(.userAborted))
        case .deadlinePassed: return giveUpBeforeStart(.kept(.deadlinePassed))
        case .qemuDied: return giveUpBeforeStart(.lost(.qemuDied, wasCommitted: false))
        case .qemuStopped, .retryDue: return []
        case .resolve: return [.note(.nothingToResolve)]
        case .restarted, .connected, .connectionLost, .received, .gateOpened, .qemuCompleted, .qemuFailed,
            .qemuObserved, .recordFailed, .peerSilent, .switchOverTimedOut, .transferResumed, .serviceImpossible,
            .reconnectTimedOut:
            illegal(event)
        }
    }

    private mutating func giveUpBeforeStart(_ outcome: State) -> [SourceAction] {
        state = outcome
        return [.finish]
    }

    private mutating func beforePrepared(_ event: SourceEvent) -> [SourceAction] {
        switch event {
        case .connected:
            guard case .connecting(let offer) = state else { illegal(event) }
            state = .opening
            return [.send(.open(offer))]
        case .received(let message): return beforePrepared(message)
        case .gateOpened:
            switch state {
            case .transferring: return [.raiseDowntimeLimit]
            // QEMU converged by itself while the gate was being opened.
            case .switching: return []
            case .idle, .connecting, .opening, .reconnecting, .orphaned, .releasing, .deciding, .undecidable,
                .committed, .serving,
                .aborting, .recovering, .completed, .kept, .lost:
                illegal(event)
            }
        case .qemuStopped:
            guard state == .transferring else { return [] }
            state = .switching
            return recordReleasing()
        case .qemuDied(let watched):
            // A stopped guest's image is final, so the copy that is being completed is as good as the original. A guest
            // that was paused from the start never shows STOP.
            if watched, state == .switching || (state == .transferring && !guestRunning) {
                state = .orphaned
                return [.note(.sourceDiedStopped)]
            }
            return abort(.qemuDied)
        case .connectionLost: return loseConnection(.connectionLost)
        case .qemuCompleted: return abort(.qemuCompletedEarly)
        case .qemuFailed(let text): return abort(.qemuFailed(text))
        case .localFailed(let problem): return abort(.local(problem))
        case .recordFailed(.started, let text), .recordFailed(.releasing, let text): return abort(.recordFailed(text))
        case .userAborted: return abort(.userAborted)
        case .deadlinePassed: return abort(.deadlinePassed)
        case .peerSilent: return loseConnection(.peerSilent)
        case .switchOverTimedOut: return abort(.switchOverTimedOut)
        case .retryDue, .transferResumed, .serviceImpossible, .reconnectTimedOut: return []
        case .resolve: return [.note(.nothingToResolve)]
        case .start, .restarted, .qemuObserved, .recordFailed(.committed, _), .recordFailed(.serving, _),
            .recordFailed(.aborted, _),
            .recordFailed(.completed, _), .recordFailed(.kept, _), .recordFailed(.lost, _):
            illegal(event)
        }
    }

    private mutating func beforePrepared(_ message: SessionMessage) -> [SourceAction] {
        switch (state, message) {
        case (.opening, .ready(let terms)):
            state = .transferring
            resumes = resumes && terms.resumes == true
            return [.startTransfer]
        case (.opening, .refused(let problem)): return abort(.refused(problem))
        case (.opening, .failed(let failure)), (.transferring, .failed(let failure)),
            (.switching, .failed(let failure)):
            return abort(.peerFailed(failure.problem))
        // `transferring` too: the message may overtake QEMU's STOP event, and a paused guest shows none.
        case (.transferring, .prepared), (.switching, .prepared): return release()
        // It knows of a loss that was not noticed here.
        case (.transferring, .cutOff), (.switching, .cutOff): return loseConnection(.connectionLost)
        case (.opening, .heartbeat), (.transferring, .heartbeat), (.switching, .heartbeat): return []
        case (_, .open), (_, .ready), (_, .refused), (_, .prepared), (_, .commit), (_, .abort), (_, .running),
            (_, .verdictQuery), (_, .heartbeat), (_, .failed), (_, .aborted), (_, .resume), (_, .resumed),
            (_, .sourceLost), (_, .cutOff):
            return abort(.peerBrokeProtocol(message: message.kind, state: state.name))
        }
    }

    /// The destination holds everything.
    mutating func release() -> [SourceAction] {
        state = .releasing
        return recordReleasing() + [.deliverShut]
    }

    /// Nothing, when it is on record already.
    private mutating func recordReleasing() -> [SourceAction] {
        defer { mayRelease = true }
        return mayRelease ? [] : [.record(record(.releasing))]
    }

    /// Waiting costs nothing, the guest cannot run here any more; only the destination can still save the VM.
    private mutating func orphaned(_ event: SourceEvent) -> [SourceAction] {
        switch event {
        // Only a prepared destination asks for a verdict: the question says as much as the lost `prepared`.
        case .received(.prepared), .received(.verdictQuery): return commit()
        case .received(.failed(let failure)): return abort(.peerFailed(failure.problem))
        case .received(.open), .received(.ready), .received(.refused), .received(.commit), .received(.abort),
            .received(.running), .received(.aborted), .received(.resume):
            return abort(.qemuDied)
        case .userAborted, .deadlinePassed, .switchOverTimedOut: return abort(.qemuDied)
        case .retryDue: return [.connect]
        case .connected, .connectionLost, .peerSilent, .received(.heartbeat), .received(.resumed),
            .received(.sourceLost), .received(.cutOff),
            .transferResumed, .serviceImpossible, .reconnectTimedOut, .localFailed, .gateOpened, .qemuStopped,
            .qemuFailed,
            .qemuCompleted, .qemuDied, .qemuObserved:
            return []
        case .resolve: return [.note(.nothingToResolve)]
        case .start, .restarted, .recordFailed: illegal(event)
        }
    }
}

// MARK: - The window between `prepared` and the decision

extension SourceSession {
    private mutating func releasing(_ event: SourceEvent) -> [SourceAction] {
        switch event {
        case .qemuCompleted, .qemuObserved(.handedOver): return commit()
        case .qemuDied(watched: true): return commit()
        case .qemuDied(watched: false): return becomeUndecidable()
        case .qemuFailed(let text): return abort(.qemuFailed(text), wasReleasing: true)
        case .qemuObserved(.kept): return abort(.qemuFailed("it resumed the guest"), wasReleasing: true)
        // SHUT 0 was not delivered: the list ended at its record.
        case .recordFailed(.releasing, let text): return abort(.recordFailed(text))
        // The copy is gone before the commit point, so the VM is ours whatever QEMU makes of SHUT 0.
        case .received(.failed(let failure)) where failure.copy == .neverRan:
            return abort(.peerFailed(failure.problem), wasReleasing: true)
        // Its operator gave the verdict in our place. Ours is not known yet; `commit` or an alarm follows from it.
        case .received(.running), .received(.failed): return [.note(.ranWithoutCommit)]
        case .userAborted, .deadlinePassed: return [.note(.tooLate)]
        case .switchOverTimedOut, .retryDue, .resolve: return [.observeQemu]
        // Still migrating: SHUT 0 is unread. Dead: the death itself is reported, and says whether it was watched.
        case .qemuObserved(.migrating), .qemuObserved(.dead): return []
        // The destination waits for QEMU's answer as we do; it asks again.
        case .received(.verdictQuery), .received(.prepared), .received(.heartbeat): return []
        case .received(.open), .received(.ready), .received(.refused), .received(.commit), .received(.abort),
            .received(.aborted), .received(.resume), .received(.resumed), .received(.sourceLost), .received(.cutOff):
            return [.note(.ignoredNonsense)]
        // STOP can trail the `prepared` that it made possible; the gate, too.
        case .qemuStopped, .gateOpened, .connected, .connectionLost, .peerSilent, .transferResumed, .serviceImpossible,
            .reconnectTimedOut,
            .localFailed:
            return []
        case .start, .restarted, .recordFailed(.started, _), .recordFailed(.committed, _), .recordFailed(.serving, _),
            .recordFailed(.aborted, _),
            .recordFailed(.completed, _), .recordFailed(.kept, _), .recordFailed(.lost, _):
            illegal(event)
        }
    }

    private mutating func deciding(_ decision: Decision, _ event: SourceEvent) -> [SourceAction] {
        switch event {
        case .retryDue, .resolve:
            switch decision {
            case .commit: return commit()
            case .abort(let failure): return abort(failure, wasReleasing: true)
            }
        // Even if the refused write left `committed` behind: nobody was told, and there is no copy any more.
        case .received(.failed(let failure)) where failure.copy == .neverRan:
            return abort(.peerFailed(failure.problem), wasReleasing: true)
        case .userAborted: return [.note(.tooLate)]
        case .connected, .connectionLost, .received, .gateOpened, .qemuStopped, .qemuCompleted, .qemuFailed,
            .qemuDied, .qemuObserved, .localFailed, .deadlinePassed, .peerSilent, .switchOverTimedOut, .transferResumed,
            .serviceImpossible,
            .reconnectTimedOut:
            return []
        case .start, .restarted, .recordFailed: illegal(event)
        }
    }

    private mutating func undecidable(_ event: SourceEvent) -> [SourceAction] {
        switch event {
        case .resolve(commit: true): return commit()
        case .resolve(commit: false): return abort(.operatorDiscarded, wasReleasing: true)
        case .received(.failed(let failure)) where failure.copy == .neverRan:
            return abort(.peerFailed(failure.problem), wasReleasing: true)
        // It was committed, or the destination's operator decided; there is no other copy that could run.
        case .received(.running): return commit()
        case .retryDue: return [.connect, .send(.verdictQuery)]
        case .userAborted: return [.note(.tooLate)]
        case .received(.open), .received(.ready), .received(.refused), .received(.prepared), .received(.commit),
            .received(.abort), .received(.verdictQuery), .received(.heartbeat), .received(.failed),
            .received(.aborted), .received(.resume), .received(.resumed), .received(.sourceLost), .received(.cutOff):
            return []
        case .connected, .connectionLost, .gateOpened, .qemuStopped, .qemuCompleted, .qemuFailed, .qemuDied,
            .qemuObserved, .localFailed, .deadlinePassed, .peerSilent, .switchOverTimedOut, .transferResumed,
            .serviceImpossible, .reconnectTimedOut:
            return []
        case .start, .restarted, .recordFailed: illegal(event)
        }
    }

    mutating func becomeUndecidable() -> [SourceAction] {
        state = .undecidable
        return [.note(.diedUnobserved), .connect, .send(.verdictQuery)]
    }

    /// The commit point is the record; only after it may the word leave this host.
    mutating func commit() -> [SourceAction] {
        state = .committed(linked: true)
        return recordReleasing() + [.record(record(.committed)), .connect, .send(.commit)]
    }
}
