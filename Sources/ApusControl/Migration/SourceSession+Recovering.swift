//  The source's half after an agent restart: the record says how far it had come, QEMU says the rest.

extension SourceSession {
    mutating func recovering(_ stage: SourceStage, _ event: SourceEvent) -> [SourceAction] {
        switch event {
        case .restarted: return restarted(stage)
        case .qemuObserved(.handedOver): return commit()
        case .qemuObserved(.kept): return abort(.agentRestarted, wasReleasing: true)
        case .qemuObserved(.dead), .qemuDied: return becomeUndecidable()
        case .qemuObserved(.migrating): return []
        case .qemuCompleted, .qemuFailed, .retryDue, .resolve: return [.observeQemu]
        case .received(.failed(let failure)) where failure.copy == .neverRan:
            return abort(.peerFailed(failure.problem), wasReleasing: true)
        case .received(.running): return [.note(.ranWithoutCommit)]
        case .received(.verdictQuery), .received(.prepared), .received(.heartbeat), .received(.failed),
            .received(.open), .received(.ready), .received(.refused), .received(.commit), .received(.abort),
            .received(.aborted), .received(.resume), .received(.resumed), .received(.sourceLost), .received(.cutOff):
            return []
        case .userAborted: return [.note(.tooLate)]
        case .connected, .connectionLost, .gateOpened, .qemuStopped, .localFailed, .deadlinePassed, .peerSilent,
            .switchOverTimedOut, .transferResumed, .serviceImpossible, .reconnectTimedOut:
            return []
        case .start, .recordFailed: illegal(event)
        }
    }

    private mutating func restarted(_ stage: SourceStage) -> [SourceAction] {
        switch stage {
        case .started: return abort(.agentRestarted)
        case .releasing: return [.observeQemu]
        case .committed:
            state = .committed(linked: false)
            return [.connect]
        case .serving:
            state = .serving
            return [.connect]
        case .aborted(let failure):
            state = .aborting(failure, wasReleasing: false, from: .inDoubt)
            return takeBack(failure)
        case .completed, .kept, .lost: illegal(.restarted)
        }
    }

    func record(_ stage: SourceStage) -> SourceRecord {
        SourceRecord(job: job, guestRunning: guestRunning, stage: stage)
    }

    /// A pair that only a mistake of our own can bring about.
    func illegal(_ event: SourceEvent) -> Never {
        preconditionFailure("source session \(job): \(event) in state \(state.name)")
    }
}
