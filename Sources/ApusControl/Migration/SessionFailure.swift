/// Why a session gave up, by cause.
public enum SessionFailure: Error, Codable, Sendable, Equatable {
    case userAborted
    /// The operator of the destination decided so, the source being out of reach.
    case operatorDiscarded
    case deadlinePassed
    case connectionLost
    case peerSilent
    /// The guest was stopped, and the destination did not hold it in time.
    case switchOverTimedOut
    /// The destination said no before anything moved.
    case refused(SessionProblem)
    /// The other agent reported this.
    case peerFailed(SessionProblem)
    /// Own checks, pipeline or QEMU start failed.
    case local(SessionProblem)
    /// The other agent sent what the protocol does not allow here.
    case peerBrokeProtocol(message: SessionMessage.Kind, state: String)
    case qemuFailed(String)
    case qemuDied
    /// QEMU said `completed` although nobody had told it that the destination holds the VM.
    case qemuCompletedEarly
    case agentRestarted
    /// The agent's database could not be written.
    case recordFailed(String)

    public var problem: SessionProblem {
        switch self {
        case .userAborted:
            .init("aborted", "The migration was aborted by the user.", advice: "The VM runs on where it was.")
        case .operatorDiscarded:
            .init(
                "operator-discarded", "The destination's operator discarded its copy.",
                advice: "Migrate again when the destination is ready.")
        case .deadlinePassed:
            .init("deadline-passed", "Not committed within the job's time limit.", advice: "Raise --timeout.")
        case .connectionLost:
            .init(
                "connection-lost", "The connection to the other agent was lost.",
                advice: "Check the network and that the other agent runs, then migrate again.")
        case .peerSilent:
            .init(
                "peer-silent", "The other agent stopped answering.",
                advice: "Check the network and the other agent's log, then migrate again.")
        case .switchOverTimedOut:
            .init(
                "switch-over-timed-out", "The destination did not hold the stopped VM in time.",
                advice: "Lower --max-downtime, or look at the destination's log.")
        case .refused(let problem), .peerFailed(let problem), .local(let problem): problem
        case .peerBrokeProtocol(let message, let state):
            .init(
                "peer-broke-protocol", "The other agent sent \(message.rawValue) in state \(state).",
                advice: "Install the same release of Apus on both hosts.")
        case .qemuFailed(let text):
            .init(
                "qemu-failed", "QEMU failed the migration: \(text)",
                advice: "Look at QEMU's log on both hosts, then migrate again.")
        case .qemuDied:
            .init(
                "qemu-died", "The VM's QEMU process ended during the migration.",
                advice: "This host's VM has ended with it; its log says more. Start it anew.")
        case .qemuCompletedEarly:
            .init(
                "qemu-completed-early", "QEMU completed the migration before the destination confirmed it.",
                advice: "Nothing else may migrate this VM at the same time; look at who uses its monitor.")
        case .agentRestarted:
            .init("agent-restarted", "The agent was restarted during the migration.", advice: "Migrate again.")
        case .recordFailed(let text):
            .init("record-failed", "The agent's database cannot be written: \(text)", advice: "Free disk space.")
        }
    }

    /// `aborted` when a person wanted it, `failed` otherwise.
    public var phase: SessionPhase { self == .userAborted ? .aborted : .failed }
}
