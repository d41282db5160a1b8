//  The source's half of giving up: [aborted] first, then the guest is seen back, then the end.

extension SourceSession {
    mutating func abort(_ failure: SessionFailure, wasReleasing: Bool = false) -> [SourceAction] {
        state = .aborting(failure, wasReleasing: wasReleasing, from: phase)
        return [.record(record(.aborted(failure)))] + takeBack(failure)
    }

    func takeBack(_ failure: SessionFailure) -> [SourceAction] {
        [.send(.abort(failure.problem)), .releaseQemu, .observeQemu]
    }

    mutating func aborting(
        _ failure: SessionFailure, wasReleasing: Bool, _ event: SourceEvent
    ) -> [SourceAction] {
        switch event {
        case .qemuObserved(.kept(let running)):
            if guestRunning, !running { return [.resumeGuest, .observeQemu] }
            return end(.kept(failure), .kept(failure))
        // The copy was lost after SHUT 0. [aborted] is durable, so the destination can never run it: ours may.
        case .qemuObserved(.handedOver):
            if guestRunning { return [.resumeGuest, .observeQemu] }
            return end(.kept(failure), .kept(failure))
        case .qemuObserved(.dead), .qemuDied:
            // Whatever began it, this is what its operator must know now.
            let cause: [SourceAction] = failure == .qemuDied ? [] : [.note(failure.problem)]
            return cause + end(.lost(.qemuDied, wasCommitted: false), .lost(.qemuDied, wasCommitted: false))
        case .qemuObserved(.migrating): return []
        case .qemuFailed, .qemuCompleted, .retryDue, .resolve: return [.observeQemu]
        case .recordFailed(.aborted, let text):
            let note = SourceAction.note(SessionFailure.recordFailed(text).problem)
            // Without [releasing] a successor presumes `abort` anyway. With it, it might commit: record first.
            if !wasReleasing { return [note] + takeBack(failure) }
            state = .deciding(.abort(failure))
            return [note]
        case .received(.prepared), .received(.verdictQuery), .received(.cutOff): return [.send(.abort(failure.problem))]
        case .received(.running): return [.note(.ranWithoutCommit)]
        case .received(.ready), .received(.refused), .received(.heartbeat), .received(.failed), .received(.aborted),
            .received(.resume), .received(.resumed), .received(.sourceLost),
            .received(.open), .received(.commit), .received(.abort):
            return []
        case .connected, .connectionLost, .gateOpened, .qemuStopped, .localFailed, .userAborted, .deadlinePassed,
            .peerSilent, .switchOverTimedOut, .transferResumed, .serviceImpossible, .reconnectTimedOut:
            return []
        case .start, .restarted, .recordFailed(.started, _), .recordFailed(.releasing, _),
            .recordFailed(.committed, _), .recordFailed(.serving, _), .recordFailed(.completed, _),
            .recordFailed(.kept, _),
            .recordFailed(.lost, _):
            illegal(event)
        }
    }

    private mutating func end(_ outcome: State, _ stage: SourceStage) -> [SourceAction] {
        state = outcome
        return [.record(record(stage)), .finish]
    }

    func ended(_ event: SourceEvent) -> [SourceAction] {
        switch event {
        // Its successor repeats the last step; nothing is at stake.
        case .recordFailed(.completed, _), .recordFailed(.kept, _), .recordFailed(.lost, _): return [.finish]
        case .received(.prepared), .received(.verdictQuery):
            switch state {
            case .kept(let failure), .lost(let failure, wasCommitted: false):
                return [.send(.abort(failure.problem))]
            case .completed, .lost(_, wasCommitted: true): return [.send(.commit)]
            case .idle, .connecting, .opening, .transferring, .reconnecting, .switching, .orphaned, .releasing,
                .deciding,
                .undecidable, .committed, .serving, .aborting, .recovering:
                illegal(event)
            }
        case .received(.cutOff):
            switch state {
            case .kept(let failure), .lost(let failure, wasCommitted: false): return [.send(.abort(failure.problem))]
            default: return []
            }
        case .received(.running(let report)):
            switch state {
            case .completed: return []
            case .lost(let failure, wasCommitted: true):
                return report.isPulling ? [.send(.sourceLost(failure.problem))] : []
            default: return [.note(.ranWithoutCommit)]
            }
        case .userAborted, .resolve: return [.note(.tooLate)]
        case .received(.open), .received(.ready), .received(.refused), .received(.commit), .received(.abort),
            .received(.heartbeat), .received(.failed), .received(.aborted), .received(.resume), .received(.resumed),
            .received(.sourceLost):
            return []
        case .connected, .connectionLost, .gateOpened, .qemuStopped, .qemuCompleted, .qemuFailed, .qemuDied,
            .qemuObserved, .localFailed, .deadlinePassed, .peerSilent, .switchOverTimedOut, .retryDue, .transferResumed,
            .serviceImpossible,
            .reconnectTimedOut:
            return []
        case .start, .restarted, .recordFailed(.started, _), .recordFailed(.releasing, _),
            .recordFailed(.committed, _), .recordFailed(.serving, _), .recordFailed(.aborted, _):
            illegal(event)
        }
    }
}
