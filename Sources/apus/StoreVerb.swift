import ApusAPI
import ArgumentParser
import Foundation

struct StoreVerb: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "store",
        abstract: "Content that need not travel: disks that are indexed, memory that VMs have left.",
        subcommands: [Show.self, Collect.self, Drop.self])

    struct Show: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Show memory images and indexed disks.")
        @OptionGroup var connection: Connection

        func run() async throws {
            try await connection.run { client in
                let report: StoreReport = try await client.get("/v1/store")
                connection.show(report, Text.details(of: report))
            }
        }
    }

    struct Collect: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            commandName: "gc", abstract: "Give back what no memory image needs.")
        @OptionGroup var connection: Connection

        func run() async throws {
            try await connection.run { client in
                let report: StoreReport = try await client.post("/v1/store/gc")
                connection.show(report, Text.details(of: report))
            }
        }
    }

    struct Drop: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Remove what a VM has left here.")
        @Argument(help: "The VM's name.") var name: String
        @Flag(help: "Overwrite it first. SSDs and copy-on-write file systems may keep the old bytes all the same.")
        var wipe = false
        @OptionGroup var connection: Connection

        func run() async throws {
            try await connection.run { client in
                let path = "/v1/store/images/\(AgentClient.escaped(name))\(wipe ? "?wipe=true" : "")"
                let report: StoreReport = try await client.delete(path)
                connection.show(report, Text.details(of: report))
            }
        }
    }
}

extension Text {
    static func details(of report: StoreReport) -> String {
        var rows: [(String, String)] = []
        if let path = report.path {
            rows.append(("store", "\(path), \(Units.bytes(report.byteCount)) of \(Units.bytes(report.bytesMax))"))
        } else {
            rows.append(("store", "off"))
        }
        for image in report.images {
            let when = image.usedAt.map { "used \(date($0, .current))" } ?? "being written"
            rows.append(("image", "\(image.vm), \(Units.memory(image.memoryBytes)), \(when)"))
        }
        for disk in report.disks {
            rows.append(
                (
                    "disk",
                    "\(disk.path), \(Units.count(UInt64(disk.blocks))) blocks, "
                        + "\(Units.bytes(UInt64(disk.tableBytes))) of memory, \(disk.state)"
                ))
        }
        if let problem = report.problem { rows.append(("problem", problem)) }
        return list(rows)
    }
}
