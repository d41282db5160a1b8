import ApusAPI
import ArgumentParser
import Foundation

struct VMVerb: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "vm", abstract: "The VMs of this host.",
        subcommands: [Run.self, Adopt.self, List.self, Show.self, Stop.self])

    struct Run: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Start a VM in the background.",
            discussion: """
                The command is QEMU's own; {run} in it stands for the VM's run directory on whatever host it is. The agent \
                adds a name, a monitor, and shared memory for guest RAM unless the command says where RAM comes from. The \
                VM outlives the agent.

                  apus vm run web -- qemu-system-x86_64 -M q35 -m 1024 -serial file:{run}/console.log …
                """)
        @Argument(help: "The VM's name.") var name: String
        @Argument(parsing: .postTerminator, help: "QEMU and its arguments, after --.") var command: [String] = []
        @OptionGroup var connection: Connection

        func validate() throws {
            if command.isEmpty {
                throw ValidationError("Give QEMU's command after --, for example -- qemu-system-x86_64 -m 1024.")
            }
        }

        func run() async throws {
            let request = RunRequest(
                name: name, command: command, workingDirectory: FileManager.default.currentDirectoryPath)
            try await connection.run { client in
                let machine: MachineSummary = try await client.post("/v1/vms", request)
                connection.show(machine, Text.started(machine))
            }
        }
    }

    struct Adopt: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Take hold of a running QEMU by its monitor.",
            discussion: """
                QEMU must have a QMP socket that nobody else uses (-qmp unix:PATH,server=on,wait=off). A destination starts \
                the VM with the running QEMU's own arguments, or with the command given after --.
                """)
        @Option(help: ArgumentHelp("The monitor's socket.", valueName: "path")) var qmp: String
        @Option(help: "The VM's name; default: QEMU's.") var name: String?
        @Argument(parsing: .postTerminator, help: "How a destination starts this VM.") var command: [String] = []
        @OptionGroup var connection: Connection

        func run() async throws {
            let request = AdoptRequest(
                qmpPath: AgentVerb.absolute(qmp), name: name, command: command.isEmpty ? nil : command)
            try await connection.run { client in
                let machine: MachineSummary = try await client.post("/v1/vms/adopt", request)
                connection.show(machine, Text.started(machine))
            }
        }
    }

    struct List: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List the VMs of this host.")
        @OptionGroup var connection: Connection

        func run() async throws {
            try await connection.run { client in
                let machines: [MachineSummary] = try await client.get("/v1/vms")
                connection.show(machines, Text.table(of: machines))
            }
        }
    }

    struct Show: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Show one VM.")
        @Argument(help: "The VM's name.") var name: String
        @OptionGroup var connection: Connection

        func run() async throws {
            try await connection.run { client in
                let machine: MachineSummary = try await client.get("/v1/vms/\(AgentClient.escaped(name))")
                connection.show(machine, Text.details(of: machine))
            }
        }
    }

    struct Stop: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Shut a VM down by its power button, and forget it.")
        @Argument(help: "The VM's name.") var name: String
        @Flag(help: "End its QEMU at once, as pulling the plug.") var force = false
        @OptionGroup var connection: Connection

        func run() async throws {
            try await connection.run { client in
                let query = force ? "?force=true" : ""
                let machine: MachineSummary = try await client.delete("/v1/vms/\(AgentClient.escaped(name))\(query)")
                connection.show(machine, "\(machine.name) has stopped.")
            }
        }
    }
}
