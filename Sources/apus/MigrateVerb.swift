public import ApusAPI
public import ArgumentParser
import Foundation
import UnixSignals

struct MigrateVerb: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "migrate",
        abstract: "Move a running VM to another host.",
        discussion: """
            Ctrl-C aborts: the VM runs on here. A second Ctrl-C leaves the job to the agent. Exit codes: see `apus --help`.
            """)

    @Argument(help: "The VM's name.") var name: String
    @Argument(help: "The destination agent: a name from the agent's configuration, or ADDRESS[:PORT].") var host: String
    @Flag(help: "Tell each phase and decision; without a terminal, tell progress in lines.") var verbose = false
    @Option(help: ArgumentHelp("The longest pause you accept, in milliseconds.", valueName: "ms")) var maxDowntime = 300
    @Option(help: ArgumentHelp("At most this much on the link, in MB/s.", valueName: "MB/s")) var bandwidth: Double?
    @Option(help: ArgumentHelp("Give up after this many seconds; the VM then runs on here.", valueName: "s"))
    var timeout: Double?
    @Option(
        help: ArgumentHelp(
            "By then it runs there: what is allowed is done in time. Else as --timeout.", valueName: "s"))
    var deadline: Double?
    @Option(
        help: ArgumentHelp(
            "What may be done about a VM that writes too fast: throttle (slow it down), postcopy (it moves before the "
                + "rest of its memory), both with a comma, or none. Default: as the agent is configured, throttle.",
            valueName: "means"))
    var allow: AllowedMeans?
    @Option(help: "How memory is reached: auto, direct (the agents own guest RAM), stream (QEMU's migration stream).")
    var port = MemoryPort.auto
    @Option(
        help: ArgumentHelp(
            "plain, dsm: memory moves before the guest; pages sent again travel whole, or as the lines that changed. "
                + "hybrid, postcopy: the guest moves when nothing more is gained, or at once; the rest is fetched."))
    var mode: MigrationMode?
    @Flag(help: "Compare all memory by digest before the switch, send again what differs. The pause gets longer.")
    var verify = false
    @Flag(
        help: """
            Move private RAM (plain -m) into a file first, so that the direct port can have it: a pause of some \
            milliseconds for each 256 MiB. What cannot be moved goes by the stream port.
            """)
    var rebaseMemory = false
    @Flag(help: "Send every page, also those that the destination could read on a shared disk or has kept.")
    var noReferences = false
    @Flag(help: "Do not wait: print the job and return.") var detach = false
    @OptionGroup var connection: Connection

    func validate() throws {
        if maxDowntime < 1 { throw ValidationError("--max-downtime must be at least 1 ms.") }
        if let bandwidth, !(bandwidth > 0) { throw ValidationError("--bandwidth must be more than 0 MB/s.") }
        if let timeout, !(timeout > 0) { throw ValidationError("--timeout must be more than 0 s.") }
        if let deadline, !(deadline > 0) { throw ValidationError("--deadline must be more than 0 s.") }
        if rebaseMemory && port == .stream {
            throw ValidationError("--rebase-memory is for the direct port: leave out --port stream.")
        }
    }

    func run() async throws {
        let request = MigrateRequest(
            vm: name, host: host, maxDowntimeMs: maxDowntime, bandwidthMBps: bandwidth, timeoutS: timeout,
            deadlineS: deadline, allow: allow?.means, port: port, mode: mode, verify: verify ? true : nil,
            rebaseMemory: rebaseMemory ? true : nil, references: noReferences ? false : nil)
        // Trapped before the job exists: a Ctrl-C in between must abort it, not leave it without its watcher.
        let interrupts = detach ? nil : await UnixSignalsSequence(trapping: .sigint)
        try await connection.run { client in
            let job: JobStatus = try await client.post("/v1/migrations", request)
            guard let interrupts else {
                connection.show(
                    job, "Job \(job.id) moves \(job.vm) to \(job.peer); see it with `apus job watch \(job.id)`.")
                return
            }
            let watcher = Watcher(client: client, connection: connection, verbose: verbose, ownsJob: true)
            try await watcher.watch(job, interrupts: interrupts)
        }
    }
}

/// `throttle,postcopy`, `none`.
struct AllowedMeans: ExpressibleByArgument {
    let means: [MigrationMeans]

    init?(argument: String) {
        if argument == "none" {
            means = []
            return
        }
        let words = argument.split(separator: ",", omittingEmptySubsequences: false)
        let known = words.compactMap { MigrationMeans(rawValue: String($0)) }
        guard known.count == words.count else { return nil }
        means = known
    }
}

extension MemoryPort: ExpressibleByArgument {}
extension MigrationMode: ExpressibleByArgument {}

struct JobVerb: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "job", abstract: "Migrations of this host, running and past.",
        subcommands: [List.self, Show.self, Watch.self, Abort.self, Postcopy.self, Resolve.self])

    static func path(_ id: String, _ rest: String = "") -> String { "/v1/migrations/\(AgentClient.escaped(id))\(rest)" }

    struct List: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List jobs, newest first.")
        @OptionGroup var connection: Connection

        func run() async throws {
            try await connection.run { client in
                let jobs: [JobStatus] = try await client.get("/v1/migrations")
                connection.show(jobs, Text.table(of: jobs, timeZone: .current))
            }
        }
    }

    struct Show: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Show one job.")
        @Argument(help: "The job's id.") var id: String
        @OptionGroup var connection: Connection

        func run() async throws {
            try await connection.run { client in
                let job: JobStatus = try await client.get(JobVerb.path(id))
                connection.show(job, Text.details(of: job))
            }
        }
    }

    struct Watch: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Watch a job to its end; Ctrl-C leaves it running.",
            discussion: "Exits as `apus migrate` does.")
        @Argument(help: "The job's id.") var id: String
        @Flag(help: "Tell each phase and decision.") var verbose = false
        @OptionGroup var connection: Connection

        func run() async throws {
            try await connection.run { client in
                let job: JobStatus = try await client.get(JobVerb.path(id))
                let watcher = Watcher(client: client, connection: connection, verbose: verbose, ownsJob: false)
                try await watcher.watch(job, interrupts: UnixSignalsSequence(trapping: .sigint))
            }
        }
    }

    struct Abort: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Abort a job; its VM runs on where it was.")
        @Argument(help: "The job's id.") var id: String
        @OptionGroup var connection: Connection

        func run() async throws {
            try await connection.run { client in
                let job: JobStatus = try await client.post(JobVerb.path(id, "/abort"))
                connection.show(job, Text.details(of: job))
            }
        }
    }

    struct Postcopy: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Move the VM of a job in mode hybrid now.",
            discussion: "What of its memory has not travelled is fetched while it runs at the destination.")
        @Argument(help: "The job's id.") var id: String
        @OptionGroup var connection: Connection

        func run() async throws {
            try await connection.run { client in
                let job: JobStatus = try await client.post(JobVerb.path(id, "/postcopy"))
                connection.show(job, Text.details(of: job))
            }
        }
    }

    struct Resolve: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Decide about a job in doubt.",
            discussion: """
                First look at the other host: exactly one of the two may run the VM. --commit: it belongs to the \
                destination. --revert: it belongs to the source.
                """)
        @Argument(help: "The job's id.") var id: String
        @Flag(help: "The VM belongs to the destination.") var commit = false
        @Flag(help: "The VM belongs to the source.") var revert = false
        @OptionGroup var connection: Connection

        func validate() throws {
            if commit == revert { throw ValidationError("Give either --commit or --revert.") }
        }

        func run() async throws {
            try await connection.run { client in
                let job: JobStatus = try await client.post(JobVerb.path(id, "/resolve"), ResolveRequest(commit: commit))
                connection.show(job, Text.details(of: job))
            }
        }
    }
}
