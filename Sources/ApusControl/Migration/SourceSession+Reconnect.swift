import ApusFlow

//  The source's half of a connection that is lost and found while the guest runs:
//
//     transferring --connectionLost--> reconnecting: dialling --connected--> asking --`resumed`--> resuming --+
//          ^                               ^  |           ^                    |                      |       |
//          |                               |  | retryDue: |     lost again     |       lost again     |       |
//          |                               +--+ dial      +--------------------+----------------------+       |
//          +--------------------------------------- lanes stand, what was on its way is sent again <----------+
//
//  Anything else that ends a transfer ends it here too; so does the limit, and the guest's stop: from then on a loss
//  means what it has always meant, and the commit protocol knows nothing of reconnecting.

/// A lost connection on its way back.
public struct Reconnection: Sendable, Equatable {
    public enum Step: Sendable, Equatable {
        /// No connection; `retryDue` sets the pace, for a host that refuses would be dialled in a loop.
        case dialling
        /// `resume` was sent.
        case asking
        /// The destination's point is known, lanes are being opened.
        case resuming
    }
    public var step: Step
    /// What is left fits the pause; QEMU is told so when the flow goes on.
    public var gateIsHeld: Bool

    public init(_ step: Step, gateIsHeld: Bool = false) {
        self.step = step
        self.gateIsHeld = gateIsHeld
    }
}

extension SourceSession {
    /// A connection lost before `prepared`.
    mutating func loseConnection(_ failure: SessionFailure) -> [SourceAction] {
        guard state == .transferring, resumes else { return abort(failure) }
        state = .reconnecting(Reconnection(.dialling))
        return [.holdTransfer]
    }

    mutating func reconnecting(_ now: Reconnection, _ event: SourceEvent) -> [SourceAction] {
        switch event {
        case .retryDue: return now.step == .dialling ? [.connect] : []
        case .connected:
            step(.asking, now)
            return [.send(.resume)]
        case .connectionLost, .peerSilent:
            step(.dialling, now)
            return [.holdTransfer]
        case .received(let message): return reconnecting(now, message)
        case .transferResumed:
            // Of an attempt that was lost meanwhile.
            guard now.step == .resuming else { return [] }
            state = .transferring
            return now.gateIsHeld ? [.raiseDowntimeLimit] : []
        case .gateOpened:
            state = .reconnecting(Reconnection(now.step, gateIsHeld: true))
            return []
        case .serviceImpossible: return []
        case .reconnectTimedOut, .qemuStopped: return abort(.connectionLost)
        // As in `transferring`: the image of a guest that was paused from the start is final.
        case .qemuDied(watched: true) where !guestRunning:
            state = .orphaned
            return [.note(.sourceDiedStopped)]
        case .qemuDied: return abort(.qemuDied)
        case .qemuCompleted: return abort(.qemuCompletedEarly)
        case .qemuFailed(let text): return abort(.qemuFailed(text))
        case .localFailed(let problem): return abort(.local(problem))
        case .userAborted: return abort(.userAborted)
        case .deadlinePassed: return abort(.deadlinePassed)
        case .switchOverTimedOut: return abort(.switchOverTimedOut)
        case .resolve: return [.note(.nothingToResolve)]
        case .start, .restarted, .qemuObserved, .recordFailed: illegal(event)
        }
    }

    private mutating func reconnecting(_ now: Reconnection, _ message: SessionMessage) -> [SourceAction] {
        switch (now.step, message) {
        case (.asking, .resumed(let point)):
            step(.resuming, now)
            return [.resumeTransfer(point)]
        // The end of a paused guest's stream was through before the loss: the question says as much as `prepared`.
        case (_, .prepared), (_, .verdictQuery): return release()
        case (_, .failed(let failure)): return abort(.peerFailed(failure.problem))
        case (_, .heartbeat), (_, .cutOff): return []
        case (_, .open), (_, .ready), (_, .refused), (_, .commit), (_, .abort), (_, .running), (_, .aborted),
            (_, .resume), (_, .resumed), (_, .sourceLost):
            return abort(.peerBrokeProtocol(message: message.kind, state: state.name))
        }
    }

    private mutating func step(_ step: Reconnection.Step, _ now: Reconnection) {
        state = .reconnecting(Reconnection(step, gateIsHeld: now.gateIsHeld))
    }
}
