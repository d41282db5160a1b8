//  The words of the destination session: what happens to it, what it asks of the runtime, what it writes down.
//  The loop is that of the source session.

public import ApusFlow

/// What happens to a destination session.
public enum DestinationEvent: Sendable, Equatable {
    /// First event of a session restored from a record that is not final.
    case restarted
    case received(SessionMessage)
    /// A connection to the source stands again. The one that brought `open` is not announced.
    case connected
    /// The connection broke or could not be made; always reported before the `connected` of a later one.
    case connectionLost
    /// QEMU waits for its stream, lanes may connect.
    case qemuReady(TransferTerms)
    /// A check failed, QEMU could not start, a page or checksum is wrong, QEMU refused the stream (SHUT 1).
    case localFailed(SessionProblem)
    /// QEMU said SHUT 0 and every page is accounted for. The agent keeps this SHUT to itself.
    case loaded(PreparedReport)
    case qemuDied
    /// RESUME, or at once when the guest is to stay paused.
    case guestRunning(ResumeReport)
    /// `cont` was refused, for instance by a disk lock.
    case guestStartFailed(SessionProblem)
    /// The answer to `observeQemu`.
    case qemuObserved(DestinationQemu)
    /// The record could not be written; the rest of its list was not performed.
    case recordFailed(DestinationStage, String)
    case userAborted
    case peerSilent
    /// The source did not come back within the time that it had announced.
    case reconnectTimedOut
    /// Nothing is missing any more, and QEMU is as if nothing had ever been.
    case becameWhole(PullCounts)
    /// Pulling: the source has not been heard of for so long that an operator should know.
    case sourceSilent(SessionProblem)
    /// See `wantsRetry`.
    case retryDue
    /// The operator's verdict, the source's host being gone for good and fenced.
    case resolve(commit: Bool)
}

/// What the destination QEMU says about itself once it is loaded.
public enum DestinationQemu: Sendable, Equatable { case paused, running, dead }

/// What the runtime does for a destination session.
public enum DestinationAction: Sendable, Equatable {
    /// Durable before the next action.
    case record(DestinationRecord)
    /// Check the offer and start QEMU; `qemuReady` or `localFailed` follows.
    case prepareQemu(MigrationOffer)
    /// Dial the source unless connected; `connected` or `connectionLost` follows.
    case connect
    /// Best effort on the present connection; dropped without one.
    case send(SessionMessage)
    /// Bring the flow to rest, expect lanes anew, and send `resumed` with what has arrived.
    case resumeTransfer
    /// query-status, then `cont` unless it runs; with `paused` no `cont`. `guestRunning` or `guestStartFailed` follows.
    case startGuest(paused: Bool)
    /// After a restart: answer for the missing pages of the QEMU that is still there. `becameWhole` follows at once when
    /// there are none.
    case resumePull
    /// Ask QEMU where it stands; `qemuObserved` follows.
    case observeQemu
    /// Kill QEMU and remove its files; done when the process is gone. Harmless when it is.
    case discardQemu
    /// For the job's notes and the log.
    case note(SessionProblem)
    /// The state is final; release lanes, sockets and timers. The session still answers messages.
    case finish
}

/// How far a session has come, durably.
public enum DestinationStage: Codable, Sendable, Equatable {
    /// A QEMU may exist here that nothing depends on.
    case incoming
    case prepared
    case committed
    /// The guest runs, and pages are missing.
    case pulling(ResumeReport)
    case completed(ResumeReport)
    case discarded(SessionFailure)
    case lost(mayHaveRun: Bool)
}

extension DestinationSession.State {
    /// Why the VM is not here; nil: it is, or nothing is decided.
    var problem: SessionProblem? {
        switch self {
        case .discarded(let failure): failure.problem
        case .lost: .destinationDied
        case .idle, .preparing, .receiving, .cutOff, .inDoubt, .deciding, .starting, .pulling, .recovering, .completed:
            nil
        }
    }

    /// For messages and logs.
    public var name: String {
        switch self {
        case .idle: "idle"
        case .preparing: "preparing"
        case .receiving: "receiving"
        case .cutOff: "cutOff"
        case .inDoubt: "inDoubt"
        case .deciding: "deciding"
        case .starting: "starting"
        case .pulling: "pulling"
        case .recovering: "recovering"
        case .completed: "completed"
        case .discarded: "discarded"
        case .lost: "lost"
        }
    }
}

extension SessionProblem {
    static let destinationDied = SessionProblem(
        "destination-qemu-died", "The destination QEMU ended while it held the VM.",
        advice: "Look at its log; `apus vm show` on both hosts tells what is left of the VM.")
    static let sourceAnswers = SessionProblem(
        "source-answers", "The source agent can be reached; the verdict is its.", advice: "Resolve it there.")
    static let resolvedByOperator = SessionProblem(
        "resolved-by-operator", "Committed by the operator without the source's verdict.")
    static let ranByHand = SessionProblem(
        "ran-by-hand", "The VM was started here by somebody before the source's verdict.")
    static let abortAfterCommit = SessionProblem(
        "abort-after-commit", "The source aborted a migration that was committed here.",
        advice: "Both hosts may run the VM. Stop one of the two at once.")
}
