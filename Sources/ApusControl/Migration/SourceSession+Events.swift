//  The words of the source session: what happens to it, what it asks of the runtime, what it writes down.
//
//     runtime loop, one per session:  event -> handle -> actions, in order -> next event
//     a `record` that fails: drop the rest of the list, and the next event is `recordFailed`

public import ApusFlow

/// What happens to a source session.
public enum SourceEvent: Sendable, Equatable {
    /// Local checks are done: move it.
    case start(MigrationOffer)
    /// First event of a session restored from a record that is not final.
    case restarted
    /// The control connection stands (after `connect`, or because the destination dialled).
    case connected
    /// The connection broke or could not be made. Lanes belong to it: a broken lane is a lost connection.
    /// Always reported before the `connected` of a later one.
    case connectionLost
    case received(SessionMessage)
    /// The lanes stand again and the flow goes on; answers `resumeTransfer`.
    case transferResumed
    /// The connection could not be restored within the limit, or this transfer can never go on.
    case reconnectTimedOut
    /// The pages that the destination lacks cannot be given by anybody any more.
    case serviceImpossible(SessionProblem)
    /// What is left fits the allowed pause.
    case gateOpened
    /// QEMU's STOP of a switch-over (run state `finish-migrate`; an operator's own `stop` is not meant).
    case qemuStopped
    /// query-migrate says `completed` and query-status `postmigrate`.
    case qemuCompleted
    /// query-migrate says `failed` or `cancelled`; QEMU resumes the guest by itself.
    case qemuFailed(String)
    /// The process ended (pidfd). `watched`: QMP was read without a gap up to its end, so that any earlier
    /// `qemuFailed` was reported before this.
    case qemuDied(watched: Bool)
    /// The answer to `observeQemu`.
    case qemuObserved(SourceQemu)
    /// The record could not be written; the rest of its list was not performed.
    case recordFailed(SourceStage, String)
    case userAborted
    /// The job's own time limit.
    case deadlinePassed
    /// No message for longer than heartbeats allow.
    case peerSilent
    /// Phase `switching` for too long. For a guest that was paused, which shows no STOP, counted from `gateOpened`.
    case switchOverTimedOut
    /// Own checks, reader, pipeline failed.
    case localFailed(SessionProblem)
    /// See `wantsRetry`.
    case retryDue
    /// The operator's word on a migration in doubt. It counts only where this side cannot know by itself.
    case resolve(commit: Bool)
}

/// What query-migrate and query-status, taken together, say about the source QEMU. The migration's status comes first:
/// QEMU 7.2 leaves a guest that was paused before a failed migration in run state `postmigrate`.
public enum SourceQemu: Sendable, Equatable {
    /// Status setup, active, device, pre-switchover, cancelling.
    case migrating
    /// Status none, failed or cancelled.
    case kept(running: Bool)
    /// Status completed, and not running. (Completed and running: somebody's `cont`; that is `kept(running: true)`.)
    case handedOver
    case dead
}

/// What the runtime does for a source session.
public enum SourceAction: Sendable, Equatable {
    /// Durable before the next action.
    case record(SourceRecord)
    /// Dial the destination unless connected; `connected` or `connectionLost` follows.
    case connect
    /// Best effort on the present connection; dropped without one.
    case send(SessionMessage)
    /// Open the lanes, hold the downtime limit low, let QEMU migrate into our socket (return path on).
    case startTransfer
    /// Stop sending, and cut what is left of the connections: the other side must learn of the loss. QEMU and the guest
    /// go on. Harmless when done already.
    case holdTransfer
    /// Open the lanes anew and send again what the destination lacks. `transferResumed` follows, `connectionLost` when
    /// the network fails again, `localFailed` when the two sides do not fit together any more.
    case resumeTransfer(ResumePoint)
    /// Give the destination the pages it asks for, on connections with this token, and all the others it lacks. Again:
    /// see that the connections stand. `connectionLost` follows when they cannot be made, `serviceImpossible` when the
    /// guest's RAM is not to be had.
    case serve(token: String)
    /// Drop these connections; the next `serve` makes new ones.
    case holdService
    /// Let QEMU stop at once.
    case raiseDowntimeLimit
    /// Write SHUT 0 to QEMU's return path; nobody else ever does. A dead socket is no error here: QEMU's own state
    /// decides, and is reported.
    case deliverShut
    /// Close QEMU's migration socket without SHUT, `migrate_cancel`, stop the lanes. Harmless when done already.
    case releaseQemu
    /// Ask QEMU where it stands; `qemuObserved` follows.
    case observeQemu
    /// `cont`, unless it runs.
    case resumeGuest
    /// `quit`, then kill; done when the process is gone. Harmless when it is.
    case endQemu
    /// For the job's notes and the log.
    case note(SessionProblem)
    /// The state is final; release lanes, sockets and timers. The session still answers messages.
    case finish
}

/// How far a session has come, durably.
public enum SourceStage: Codable, Sendable, Equatable {
    case started
    /// The destination is prepared and SHUT 0 may have been delivered.
    case releasing
    case committed
    /// The guest runs at the destination, and fetches pages from here.
    case serving
    case aborted(SessionFailure)
    case completed
    case kept(SessionFailure)
    case lost(SessionFailure, wasCommitted: Bool)
}

extension SourceStage {
    /// On disk, not only in the kernel's hands, before the list goes on.
    public var isNeededAfterPowerLoss: Bool {
        switch self {
        case .releasing, .aborted: true
        case .started, .committed, .serving, .completed, .kept, .lost: false
        }
    }
}

extension SourceAction {
    var isCommit: Bool { if case .record(let record) = self { record.stage == .committed } else { false } }
}

extension SourceSession.State {
    /// For messages and logs.
    public var name: String {
        switch self {
        case .idle: "idle"
        case .connecting: "connecting"
        case .opening: "opening"
        case .transferring: "transferring"
        case .reconnecting: "reconnecting"
        case .switching: "switching"
        case .orphaned: "orphaned"
        case .releasing: "releasing"
        case .deciding: "deciding"
        case .undecidable: "undecidable"
        case .committed: "committed"
        case .serving: "serving"
        case .aborting: "aborting"
        case .recovering: "recovering"
        case .completed: "completed"
        case .kept: "kept"
        case .lost: "lost"
        }
    }

    /// Why it ended without moving the VM; nil: it did, or has not ended.
    var problem: SessionProblem? {
        switch self {
        case .kept(let failure), .lost(let failure, _): failure.problem
        case .idle, .connecting, .opening, .transferring, .reconnecting, .switching, .orphaned, .releasing, .deciding,
            .undecidable, .committed, .serving, .aborting, .recovering, .completed:
            nil
        }
    }
}

extension SessionProblem {
    static let tooLate = SessionProblem(
        "too-late", "The switch-over is past the point where this side may change it.")
    static let nothingToResolve = SessionProblem("nothing-to-resolve", "This migration is not in doubt here.")
    static let ignoredNonsense = SessionProblem(
        "peer-broke-protocol", "The other agent sent a message that means nothing at this point; it was ignored.")
    static let ranWithoutCommit = SessionProblem(
        "ran-without-commit", "The destination runs the VM although the source did not commit.",
        advice: "Stop one of the two at once; they may be writing the same disks.")
    static let sourceDiedStopped = SessionProblem(
        "source-qemu-died",
        "The source QEMU was killed while its guest was stopped; waiting for the destination's copy.")
    static let sourceDiedServing = SessionProblem(
        "source-qemu-died",
        "The source QEMU was killed while the destination fetches pages from its memory, which this agent still holds.",
        advice: "Do not restart this agent before the job has ended.")
    static let diedUnobserved = SessionProblem(
        "died-unobserved",
        "QEMU ended while no agent watched it. The destination holds a copy, but the guest may have run on after it.",
        advice:
            "Unless the destination runs the VM: if the guest did not run after the agent ended, commit the copy; otherwise discard it."
    )
    static let lostAfterCommit = SessionProblem(
        "lost-after-commit", "The VM was handed over and the destination lost it.",
        advice: "The source QEMU, if it still exists, holds the guest paused as it was at the switch-over.")
}
