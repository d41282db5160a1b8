import ApusLab
import ApusQMP
import ApusSystem
import Foundation
import Testing

extension RealGuests {
    /// A running, unmodified QEMU whose RAM is watched, or replaced, from outside.
    @Suite(.enabled(if: WriteTracker.hostLacks() == nil, "this host cannot enter processes"))
    struct EnteredQemuTests {
        static let programs = [QemuProgram.installed] + (QemuProgram.newer.map { [$0] } ?? [])

        @Test(.timeLimit(.minutes(5)), arguments: programs, [true, false])
        func noWriteOfAGuestIsMissed(program: String, isShared: Bool) async throws {
            try await Lab.with { lab in
                let guest = try await EnteredQemu.start(program, sharesMemory: isShared, in: lab)
                let tracker = try WriteTracker.attach(
                    pid: guest.pid, areas: [guest.memory], journal: lab.path("journal"))
                var replica = Replica(guest.memory, of: guest.pid)
                try replica.copyAll()
                var taken: UInt64 = 0
                for round in 0..<20 {
                    taken += try take(tracker, &replica)
                    try await guest.qmp.execute(.stop)
                    taken += try take(tracker, &replica)
                    #expect(try replica.wrongPages() == [], "round \(round)")
                    try await guest.qmp.execute(.cont)
                    try await ContinuousClock().sleep(for: .milliseconds(100))
                }
                #expect(taken > 1000 * 4096, "the guest did not write")
                try tracker.detach()
                #expect(!FileManager.default.fileExists(atPath: lab.path("journal")))
                try await guest.proves()
            }
        }

        /// As libvirt starts it: QEMU's own seccomp filter.
        @Test(.timeLimit(.minutes(5)), arguments: programs)
        func aFilteredQemuIsEntered(program: String) async throws {
            try await Lab.with { lab in
                let filter = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
                let guest = try await EnteredQemu.start(
                    program, sharesMemory: true, options: ["-sandbox", filter], in: lab)
                let tracker = try WriteTracker.attach(
                    pid: guest.pid, areas: [guest.memory], journal: lab.path("journal"))
                try await ContinuousClock().sleep(for: .milliseconds(200))
                #expect(try tracker.writtenBytes() > 0)
                try tracker.detach()
                try await guest.proves()
            }
        }

        @Test(.timeLimit(.minutes(5)), arguments: programs)
        func aGuestGoesOnInAFile(program: String) async throws {
            try await Lab.with { lab in
                let guest = try await EnteredQemu.start(program, sharesMemory: false, in: lab)
                let rebase = try MemoryRebase.begin(
                    pid: guest.pid, area: guest.memory, journal: lab.path("journal"))
                while try rebase.prepare() {
                    try await guest.qmp.execute(.stop)
                    try rebase.exchange()
                    try await guest.qmp.execute(.cont)
                    rebase.close()
                }
                try await guest.qmp.execute(.stop)
                let file = try #require(rebase.file)
                let window = try GuestWindow(file, fileOffset: 0, byteCount: guest.memory.byteCount)
                var replica = Replica(guest.memory, of: guest.pid)
                try replica.copyAll()
                #expect(replica.differences(from: window) == 0)
                try await guest.qmp.execute(.cont)
                try await guest.proves()
                // The guest writes to the file now.
                #expect(replica.differences(from: window) > 100)
                let maps = try ProcFile.read("/proc/\(guest.pid)/maps")
                #expect(maps.contains("/memfd:apus-ram"))
                #expect(!FileManager.default.fileExists(atPath: lab.path("journal")))
            }
        }

        private func take(_ tracker: WriteTracker, _ replica: inout Replica) throws -> UInt64 {
            var runs: [(offset: UInt64, byteCount: UInt64)] = []
            try tracker.takeWritten { runs.append(($1, $2)) }
            for run in runs { try replica.copy(run.offset, run.byteCount) }
            return runs.reduce(0) { $0 + $1.byteCount }
        }
    }
}

/// A QEMU with a busy guest that proves its memory, and where that memory is.
struct EnteredQemu {
    let pid: Int32
    let memory: WriteTracker.Area
    let qmp: QMPClient
    let console: Console

    static func start(
        _ program: String, sharesMemory: Bool, options: [String] = [], in lab: Lab
    ) async throws -> EnteredQemu {
        let image = try GuestImage.find()
        var workload = Workload(name: "entered", pattern: .incompressible)
        workload.ram = sharesMemory ? .file : .anonymous
        workload.memoryKiB = 256 * 1024 + 8
        workload.regionMiB = 96
        let accelerator = await Accelerator.probe(qemu: program, image: image)
        let words =
            // Before the console, so that it is there when that is.
            [program, "-qmp", "unix:\(lab.path("qmp.sock")),server=on,wait=off"] + options
            + workload.arguments(run: lab.folder, image: image, accelerator: accelerator)
        let process = try await lab.start("qemu", words)
        let console = try await Console.connect(path: lab.path("console.sock"))
        lab.later("console") { await console.close() }
        let qmp = try await QMPClient.connect(path: lab.path("qmp.sock"))
        lab.later("monitor") { await qmp.close() }
        try await console.verdicts(1, seconds: 90)
        let memory = try #require(
            try WriteTracker.Area.mapping(of: process.pid, byteCount: UInt64(workload.memoryKiB) << 10))
        return EnteredQemu(pid: process.pid, memory: memory, qmp: qmp, console: console)
    }

    /// The guest checks all its memory twice from now on: the second pass began after now.
    func proves() async throws {
        try await console.verdicts(console.trace.verdicts.count + 2, seconds: 120)
    }
}
