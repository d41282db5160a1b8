//  The destination's half of a connection that is lost and found before `prepared`:
//
//     receiving --connectionLost--> cutOff --resume--> receiving       (at rest; `resumed` tells the source how far)
//                                     |  \ loaded ---> [prepared] inDoubt: all had arrived before the loss
//                                     `-- time is up, any failure --> [discarded]
//
//  Both sides dial. The source says `resume`; a destination that gets through first says `cutOff`, so that a source that
//  has given up can answer `abort`, and one that has not noticed the loss learns of it. QEMU waits for its stream.

extension DestinationSession {
    /// A connection lost before `prepared`.
    mutating func loseConnection(_ failure: SessionFailure) -> [DestinationAction] {
        guard state == .receiving, resumes else { return discard(failure) }
        state = .cutOff
        return []
    }

    mutating func cutOff(_ event: DestinationEvent) -> [DestinationAction] {
        switch event {
        case .received(.resume):
            state = .receiving
            return [.resumeTransfer]
        case .received(.abort(let problem)): return discardAsTold(problem)
        case .loaded(let report):
            pulls = report.missingPages != nil
            // Whether linked or not: the first `retryDue` tells.
            state = .inDoubt(linked: false)
            return [.record(record(.prepared)), .send(.prepared(report))]
        // The source's QEMU is dead.
        case .reconnectTimedOut, .received(.verdictQuery): return discard(.connectionLost)
        case .localFailed(let problem): return discard(.local(problem))
        case .qemuDied: return discard(.qemuDied)
        case .userAborted: return discard(.userAborted)
        case .retryDue: return [.connect, .send(.cutOff)]
        case .connected: return [.send(.cutOff)]
        case .connectionLost, .peerSilent, .becameWhole, .sourceSilent, .received(.heartbeat): return []
        case .resolve: return [.note(.nothingToResolve)]
        case .received(.open), .received(.ready), .received(.refused), .received(.prepared), .received(.commit),
            .received(.running), .received(.failed), .received(.aborted),
            .received(.resumed), .received(.cutOff), .received(.sourceLost):
            guard case .received(let message) = event else { return [] }
            return discard(.peerBrokeProtocol(message: message.kind, state: state.name))
        case .restarted, .qemuReady, .guestRunning, .guestStartFailed, .qemuObserved, .recordFailed: illegal(event)
        }
    }
}
