import ApusAPI
import ArgumentParser

@main
struct Apus: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "apus",
        abstract: "Moves running QEMU virtual machines between hosts.",
        discussion: """
            Start `apus agent` on each host, bring VMs to it (`apus vm run`, `apus vm adopt`), and move one:

              apus vm run web -- qemu-system-x86_64 -M q35 -m 1024 …
              apus migrate web other-host

            Commands speak to the agent on this host through its socket: --agent PATH, else the environment's
            APUS_AGENT, else /run/apus/agent.sock. With --json they print the API's JSON instead of text.

            Exit codes:
              0    done
              1    failed; a VM that was to be moved runs on where it was
              3    no agent answers
              4    the migration was aborted; the VM runs on where it was
              5    in doubt: committed, but the destination has not said that the VM runs (`apus job resolve`)
              64   the command line is wrong
              130  left by a second Ctrl-C; the agent goes on by itself
            """,
        version: ApusVersion.current,
        subcommands: [AgentVerb.self, VMVerb.self, PlanVerb.self, MigrateVerb.self, JobVerb.self, StoreVerb.self])
}

/// What the process tells its caller; documented in `apus --help`.
enum ExitStatus: Int32 {
    case done = 0
    case failed = 1
    case unreachable = 3
    case aborted = 4
    case inDoubt = 5
    case left = 130

    init(_ job: JobStatus) {
        switch job.phase {
        case .completed: self = .done
        case .failed: self = .failed
        case .aborted: self = .aborted
        case .inDoubt: self = .inDoubt
        // Not over: only a lost connection makes us stop here.
        case .preparing, .transferring, .switching, .committing, .pulling: self = .unreachable
        }
    }

    var code: ExitCode { ExitCode(rawValue) }
}
