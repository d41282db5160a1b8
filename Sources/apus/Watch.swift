import ApusAPI

/// What to do while a job is watched. Pure: inputs in, actions out; `Watcher` performs them.
///
///     update(final) ─▶ finish      interrupt ─▶ abort (owner) ─▶ interrupt ─▶ leave
///     update        ─▶ show        interrupt ─▶ leave (observer)
///     ended         ─▶ finish if in doubt, else lost
struct WatchMachine {
    enum Input: Sendable {
        case update(JobStatus)
        /// The agent closed the stream.
        case ended
        /// Ctrl-C.
        case interrupt
        /// One second went by.
        case tick
    }

    enum Action: Equatable {
        case show(JobStatus)
        case say(String)
        case abort
        /// Print the outcome and exit with its code.
        case finish(JobStatus)
        /// The agent went away before the job ended.
        case lost
        case leave
    }

    /// Seconds a job may be in doubt before we stop waiting for it.
    static let doubtPatienceS = 30

    let ownsJob: Bool
    private(set) var last: JobStatus
    private var interrupted = false
    private var doubtS = 0

    init(ownsJob: Bool, job: JobStatus) {
        self.ownsJob = ownsJob
        last = job
    }

    mutating func handle(_ input: Input) -> [Action] {
        switch input {
        case .update(let job):
            last = job
            if job.phase != .inDoubt { doubtS = 0 }
            return job.phase.isFinal ? [.finish(job)] : [.show(job)]
        case .ended:
            return last.phase == .inDoubt ? [.finish(last)] : [.lost]
        case .tick:
            guard last.phase == .inDoubt else { return [] }
            doubtS += 1
            return doubtS >= Self.doubtPatienceS ? [.finish(last)] : []
        case .interrupt:
            if !ownsJob { return [.leave] }
            if interrupted { return [.leave] }
            interrupted = true
            return [.say("Aborting; Ctrl-C again leaves that to the agent."), .abort]
        }
    }
}
