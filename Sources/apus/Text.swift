import ApusAPI
import Foundation

/// What people read. Pure: values in, text out.
enum Text {
    static func problem(_ problem: Problem) -> String {
        "apus: \(problem.message)" + (problem.advice.map { "\n      \($0)" } ?? "")
    }

    static func started(_ machine: MachineSummary) -> String {
        let verb = machine.origin == .adopted ? "was adopted" : "was started"
        let line =
            "\(machine.name) \(verb): \(machine.state.rawValue), pid \(machine.pid.map(String.init) ?? "-"), "
            + "\(machine.memoryBytes.map(Units.memory) ?? "-"), \(machine.machineType ?? "-") on QEMU \(machine.qemuVersion ?? "-")."
        return line + (machine.note.map { "\n\($0)" } ?? "")
    }

    static func table(of machines: [MachineSummary]) -> String {
        if machines.isEmpty { return "No VMs." }
        let rows = machines.map { machine in
            [
                machine.name, machine.state.rawValue, machine.pid.map(String.init) ?? "-",
                machine.memoryBytes.map(Units.memory) ?? "-", machine.vcpus.map(String.init) ?? "-",
                machine.machineType ?? "-", machine.qemuVersion ?? "-", machine.job ?? "-",
            ]
        }
        return columns([["NAME", "STATE", "PID", "MEMORY", "VCPUS", "MACHINE", "QEMU", "JOB"]] + rows)
    }

    static func details(of machine: MachineSummary) -> String {
        var rows = [
            ("name", machine.name), ("state", machine.state.rawValue), ("origin", machine.origin.rawValue),
            ("pid", machine.pid.map(String.init) ?? "-"), ("memory", machine.memoryBytes.map(Units.memory) ?? "-"),
            ("vcpus", machine.vcpus.map(String.init) ?? "-"), ("machine", machine.machineType ?? "-"),
            ("qemu", machine.qemuVersion ?? "-"), ("monitor", machine.qmpPath ?? "-"),
            ("command", machine.command.map(quoted).joined(separator: " ")),
        ]
        if let job = machine.job { rows.append(("job", job)) }
        if let note = machine.note { rows.append(("note", note)) }
        return list(rows)
    }

    static func table(of jobs: [JobStatus], timeZone: TimeZone) -> String {
        if jobs.isEmpty { return "No jobs." }
        let rows = jobs.map { job in
            [
                job.id, job.vm, job.direction == .outgoing ? "to" : "from", job.peer, job.phase.rawValue,
                date(job.startedAt, timeZone), (job.summary?.totalMs ?? job.progress.elapsedMs).asDuration,
                job.summary?.downtimeMs.map(Units.milliseconds) ?? "-",
            ]
        }
        return columns([["JOB", "VM", "", "PEER", "PHASE", "STARTED", "TIME", "DOWNTIME"]] + rows)
    }

    static func details(of job: JobStatus) -> String {
        if job.phase.isFinal || job.phase == .inDoubt { return summary(of: job) }
        var progress = ProgressLine()
        return progress.text(job, columns: nil)
    }

    static func date(_ date: Date, _ timeZone: TimeZone) -> String {
        let style = Date.ISO8601FormatStyle(dateTimeSeparator: .space, timeZone: timeZone)
            .year().month().day().dateTimeSeparator(.space).time(includingFractionalSeconds: false)
        return date.formatted(style)
    }

    /// As a shell would take it back.
    static func quoted(_ word: String) -> String {
        let plain = word.utf8.allSatisfy { byte in
            byte > 0x7f || byte == UInt8(ascii: "_") || "-./:=,@%+".utf8.contains(byte)
                || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte)
                || (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(byte | 0x20)
        }
        return plain && !word.isEmpty ? word : "'" + word.replacing("'", with: #"'\''"#) + "'"
    }

    static func columns(_ rows: [[String]]) -> String {
        let count = rows.map(\.count).max() ?? 0
        let widths = (0..<count).map { column in rows.map { column < $0.count ? $0[column].count : 0 }.max() ?? 0 }
        return rows.map { row in
            let cells = row.enumerated().map { index, cell in
                index == row.count - 1 ? cell : cell + String(repeating: " ", count: widths[index] - cell.count)
            }
            return cells.joined(separator: "  ")
        }.joined(separator: "\n")
    }

    static func list(_ rows: [(String, String)]) -> String {
        let width = rows.map(\.0.count).max() ?? 0
        return rows.map { key, value in
            "  \(key)\(String(repeating: " ", count: width - key.count))  \(value)"
        }.joined(separator: "\n")
    }
}

extension Double {
    var asDuration: String { Units.duration(self) }
}
