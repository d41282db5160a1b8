import ApusAPI
import ApusSystem
import ArgumentParser
import UnixSignals

/// Shows a job until it ends, and turns its end into the exit code.
struct Watcher {
    let client: AgentClient
    let connection: Connection
    let verbose: Bool
    /// `apus migrate`: Ctrl-C aborts. `apus job watch`: it only leaves.
    let ownsJob: Bool

    func watch(_ job: JobStatus, interrupts: UnixSignalsSequence) async throws {
        let updates = try await client.events(job: job.id)
        try await withThrowingTaskGroup(of: Void.self) { group in
            let (inputs, continuation) = AsyncStream.makeStream(of: WatchMachine.Input.self)
            group.addTask {
                // A broken stream ends like one that was closed: either way the agent is gone.
                do { for try await status in updates { continuation.yield(.update(status)) } } catch {}
                continuation.yield(.ended)
            }
            group.addTask {
                for await _ in interrupts { continuation.yield(.interrupt) }
            }
            group.addTask {
                while (try? await Task.sleep(for: .seconds(1))) != nil { continuation.yield(.tick) }
            }
            defer { group.cancelAll() }
            try await perform(inputs, job)
        }
    }

    private func perform(_ inputs: AsyncStream<WatchMachine.Input>, _ job: JobStatus) async throws {
        var machine = WatchMachine(ownsJob: ownsJob, job: job)
        var display = Display(json: connection.json, verbose: verbose)
        for await input in inputs {
            for action in machine.handle(input) {
                switch action {
                case .show(let status): display.show(status)
                case .say(let text): display.say(text)
                case .abort: await abort(job, &display)
                case .finish(let status):
                    display.finish(status)
                    let code = ExitStatus(status)
                    if code != .done { throw code.code }
                    return
                case .lost:
                    display.end()
                    throw AgentUnreachable(
                        socket: client.socket,
                        reason: "it went away while job \(job.id) was \(machine.last.phase.rawValue)")
                case .leave:
                    display.end()
                    if ownsJob { throw ExitStatus.left.code }
                    return
                }
            }
        }
    }

    private func abort(_ job: JobStatus, _ display: inout Display) async {
        do {
            let _: JobStatus = try await client.post(JobVerb.path(job.id, "/abort"))
        } catch let problem as Problem {
            // Too late, for example: the job's own end will follow on the stream.
            display.say(problem.message)
        } catch {
            display.say("The abort did not reach the agent.")
        }
    }
}

/// Where a watched job appears: one line that is rewritten on a terminal, lines elsewhere, JSON lines with --json.
struct Display {
    private let json: Bool
    private let verbose: Bool
    private let columns: Int?
    private var progress = ProgressLine()
    private var notesShown = 0
    private var lineOpen = false
    private var lastLine: (phase: JobPhase, elapsedMs: Double)?

    init(json: Bool, verbose: Bool) {
        self.json = json
        self.verbose = verbose
        columns = TerminalSize.columns(of: 1)
    }

    mutating func show(_ job: JobStatus) {
        if json {
            if verbose { Output.line(Output.json(job, pretty: false)) }
            return
        }
        tellNotes(job)
        if let columns {
            Output.raw("\r\u{1B}[K" + progress.text(job, columns: columns))
            lineOpen = true
        } else if verbose, isDue(job) {
            Output.line(progress.text(job, columns: nil))
            lastLine = (job.phase, job.progress.elapsedMs)
        }
    }

    /// Without a terminal: each phase, and every second.
    private func isDue(_ job: JobStatus) -> Bool {
        guard let lastLine else { return true }
        return lastLine.phase != job.phase || job.progress.elapsedMs - lastLine.elapsedMs >= 1000
    }

    private mutating func tellNotes(_ job: JobStatus) {
        guard verbose, job.notes.count > notesShown else { return }
        end()
        for note in job.notes[notesShown...] { Output.line("  · \(note)") }
        notesShown = job.notes.count
    }

    mutating func say(_ text: String) {
        end()
        Output.error(text)
    }

    mutating func finish(_ job: JobStatus) {
        if !json { tellNotes(job) }
        if lineOpen { Output.raw("\r\u{1B}[K") }
        lineOpen = false
        Output.line(json ? Output.json(job, pretty: !verbose) : Text.summary(of: job))
    }

    /// Leaves the rewritten line as it is.
    mutating func end() {
        if lineOpen { Output.raw("\n") }
        lineOpen = false
    }
}
