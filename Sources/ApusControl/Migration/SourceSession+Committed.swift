//  The source's half once the commit point is passed: the VM is the destination's.
//
//     [committed] --running, whole------------------------------------------------> completed
//          |                                                                            ^
//          `------running, pages missing--> [serving] --running, whole------------------+
//                                              |  serve: connections, pages that are asked for first
//                                              `--- the guest's RAM is gone, or the destination's QEMU --> lost
//
//  Pages that stayed here have their only copy here, and their guest cannot run here any more: nothing can change them.

extension SourceSession {
    mutating func committed(_ event: SourceEvent) -> [SourceAction] {
        switch event {
        case .received(.running(let report)): return handedOver(report)
        case .received(.verdictQuery), .received(.prepared): return [.send(.commit)]
        case .connected:
            state = .committed(linked: true)
            return [.send(.commit)]
        case .connectionLost, .peerSilent:
            // Not dialled at once: a host that refuses would be dialled in a loop. `retryDue` sets the pace.
            state = .committed(linked: false)
            return []
        case .retryDue: return [.connect, .send(.commit)]
        case .received(.failed(let failure)):
            switch failure.copy {
            case .held: return [.note(failure.problem)]
            case .neverRan, .mayHaveRun: return lose(.peerFailed(failure.problem))
            }
        // A destination that discards after our commit was told to by its operator.
        case .received(.aborted): return lose(.operatorDiscarded)
        case .recordFailed(.committed, let text), .recordFailed(.releasing, let text):
            state = .deciding(.commit)
            return [.note(SessionFailure.recordFailed(text).problem)]
        case .userAborted, .resolve: return [.note(.tooLate)]
        case .received(.heartbeat): return []
        case .received(.open), .received(.ready), .received(.refused), .received(.commit), .received(.abort),
            .received(.resume), .received(.resumed), .received(.sourceLost), .received(.cutOff):
            return [.note(.ignoredNonsense)]
        case .gateOpened, .qemuStopped, .qemuCompleted, .qemuFailed, .qemuDied, .qemuObserved, .localFailed,
            .deadlinePassed, .switchOverTimedOut, .transferResumed, .serviceImpossible, .reconnectTimedOut:
            return []
        case .start, .restarted, .recordFailed(.started, _), .recordFailed(.serving, _), .recordFailed(.aborted, _),
            .recordFailed(.completed, _), .recordFailed(.kept, _), .recordFailed(.lost, _):
            illegal(event)
        }
    }

    /// QEMU is neither ended nor resumed: its paused guest may be the last copy, and only a person can tell.
    private mutating func lose(_ failure: SessionFailure) -> [SourceAction] {
        state = .lost(failure, wasCommitted: true)
        return [.record(record(.lost(failure, wasCommitted: true))), .note(.lostAfterCommit), .finish]
    }

    /// The guest runs there. With pages missing, this side is not done.
    private mutating func handedOver(_ report: ResumeReport) -> [SourceAction] {
        if let token = report.pullToken {
            state = .serving
            return [.record(record(.serving)), .serve(token: token)]
        }
        state = .completed
        return [.endQemu, .record(record(.completed)), .finish]
    }

    /// Nothing is decided here any more. Pages are given as long as they are asked for, whatever becomes of connections and
    /// of QEMU, whose RAM this process holds too.
    mutating func serving(_ event: SourceEvent) -> [SourceAction] {
        switch event {
        case .received(.running(let report)):
            if let token = report.pullToken { return [.serve(token: token)] }
            return handedOver(report)
        case .connected, .received(.verdictQuery), .received(.prepared): return [.send(.commit)]
        case .connectionLost, .peerSilent: return [.holdService]
        case .retryDue: return [.connect]
        case .serviceImpossible(let problem):
            state = .lost(.local(problem), wasCommitted: true)
            return [.record(record(.lost(.local(problem), wasCommitted: true))), .send(.sourceLost(problem)), .finish]
        case .received(.failed(let failure)):
            switch failure.copy {
            case .held: return [.note(failure.problem)]
            case .neverRan, .mayHaveRun: return lose(.peerFailed(failure.problem))
            }
        case .qemuDied: return [.note(.sourceDiedServing)]
        // A successor takes it up from [committed], and is told again.
        case .recordFailed(.serving, let text): return [.note(SessionFailure.recordFailed(text).problem)]
        case .userAborted, .resolve: return [.note(.tooLate)]
        case .received(.open), .received(.ready), .received(.refused), .received(.commit), .received(.abort),
            .received(.heartbeat), .received(.aborted), .received(.resume), .received(.resumed), .received(.cutOff),
            .received(.sourceLost):
            return []
        case .gateOpened, .qemuStopped, .qemuCompleted, .qemuFailed, .qemuObserved, .localFailed, .deadlinePassed,
            .switchOverTimedOut, .transferResumed, .reconnectTimedOut:
            return []
        case .start, .restarted, .recordFailed: illegal(event)
        }
    }
}
