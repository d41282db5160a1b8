import ApusAPI
import ApusLab
import Foundation
import Testing

extension RealGuests {
    /// Migrations that cannot be made: each says why, in the words of the command, and the guest runs on.
    @Suite(.enabled(if: HostPair.canMakeNamespaces, "needs root")) struct RefusalTests {
        /// `apus migrate` fails with this code; the text holds `words`.
        private func expectRefusal(
            _ what: String, _ stage: FaultStage, vm: String = FaultStage.vm, to host: String? = nil, code: String,
            words: [String]
        ) async throws {
            try await fault(what, String?.none) {
                let answer = try await stage.source.attempt(
                    ["migrate", vm, host ?? stage.destination.endpoint, "--json"], seconds: 60)
                #expect(answer.exitCode == 1, "\(what): \(answer)")
                let job = try? Agent.decode(JobStatus.self, answer.output)
                let problem = try job?.error ?? Agent.decode(Problem.self, answer.errors)
                FaultStage.expectsWords(problem, code: code)
                for word in words { #expect("\(problem)".contains(word), "\(what): \(problem)") }
                // The same for people.
                let told = try await stage.source.attempt(
                    ["migrate", vm, host ?? stage.destination.endpoint], seconds: 60)
                #expect(told.exitCode == 1)
                for word in words { #expect((told.output + told.errors).contains(word), "\(told)") }
                print("      \((told.output + told.errors).split(separator: "\n").joined(separator: "\n      "))")
                return job
            }
        }

        @Test(.timeLimit(.minutes(2))) func requestsThatMakeNoSense() async throws {
            try await FaultStage.with { stage in
                try await expectRefusal(
                    "unknown host", stage, to: "nosuchhost", code: "host-unknown", words: ["nosuchhost", "hosts"])
                try await expectRefusal(
                    "no agent there", stage, to: "10.77.0.2:9", code: "peer-unreachable", words: ["10.77.0.2:9"])
                try await expectRefusal("no address", stage, to: "a:b:c", code: "host-invalid", words: ["a:b:c"])
                try await expectRefusal("unknown VM", stage, vm: "nobody", code: "vm-unknown", words: ["nobody"])
                try await expectRefusal(
                    "to itself", stage, to: stage.source.endpoint, code: "destination-is-source", words: [FaultStage.vm]
                )
                try await stage.expectOneGuest()

                try await fault("second migration of the same VM", String?.none) {
                    let job = try await stage.begin(.firstRound)
                    try await expectRefusal("while one runs", stage, code: "vm-busy", words: [job.id, "abort"])
                    try await stage.source.apus(["job", "abort", job.id])
                    return try await stage.settle(job, .aborted)
                }
                try await fault("VM name taken at the destination", String?.none) {
                    try await stage.destination.apus(["vm", "run", FaultStage.vm, "--"] + Self.idleQemu)
                    try await expectRefusal(
                        "VM name taken", stage, code: "vm-exists", words: ["already has", stage.destination.endpoint])
                    // It is the destination's own VM still.
                    let taken = try #require(try await stage.destination.machines().first)
                    #expect(taken.state == .paused && taken.job == nil)
                    try await stage.destination.apus(["vm", "stop", FaultStage.vm, "--force"])
                    try await stage.expectOneGuest()
                    return nil
                }
            }
        }

        private static let idleQemu = [
            QemuProgram.installed, "-M", "pc-q35-7.2", "-m", "64", "-nodefaults", "-display", "none", "-S",
        ]

        /// The VM stands still here: nothing of it is ever moved.
        @Test(.timeLimit(.minutes(2))) func theDestinationLacksSomething() async throws {
            try await FaultStage.with(guest: false) { stage in
                let folder = try stage.lab.makeFolder("lacking")
                try await lackingQemu(stage, folder)
                try await lackingMachineType(stage, folder)
                try await lackingDisk(stage, folder)
                try await lackingMemory(stage)
                #expect(stage.destination.machineFiles() == [])
                #expect(try await stage.destination.machines().isEmpty)
            }
        }

        private func standing(_ stage: FaultStage, _ command: [String], _ body: () async throws -> Void) async throws {
            try await stage.source.apus(["vm", "run", "still", "--"] + command)
            try await body()
            let machine = try #require(try await stage.source.machines().first)
            #expect(machine.state == .paused && machine.job == nil, "\(machine)")
            try await wait(for: "the destination to have nothing", seconds: 10) {
                try await stage.destination.machines().isEmpty && stage.destination.machineFiles().isEmpty ? true : nil
            }
            #expect(stage.lab.strangers == [machine.pid].compactMap(\.self))
            try await stage.source.apus(["vm", "stop", "still", "--force"])
        }

        private func lackingQemu(_ stage: FaultStage, _ folder: String) async throws {
            let program = "\(folder)/qemu-here"
            try Self.script("exec qemu-system-x86_64 \"$@\"", at: program)
            try await standing(stage, [program] + Self.idleQemu.dropFirst()) {
                try FileManager.default.removeItem(atPath: program)
                try await expectRefusal(
                    "QEMU missing", stage, vm: "still", code: "qemu-missing",
                    words: [program, stage.destination.endpoint])
            }
        }

        /// The destination's QEMU is older than the machine type. Needs a newer QEMU at the source: `./dev qemu10`.
        private func lackingMachineType(_ stage: FaultStage, _ folder: String) async throws {
            guard let newer = QemuProgram.newer else {
                return print("skipped: machine type missing (no QEMU 10; ./dev qemu10 gets it)")
            }
            let program = "\(folder)/qemu-new"
            try Self.script("exec \(newer) \"$@\"", at: program)
            var command = [program] + Self.idleQemu.dropFirst()
            command[2] = "pc-q35-10.0"
            try await standing(stage, command) {
                try FileManager.default.removeItem(atPath: program)
                try Self.script("exec \(QemuProgram.installed) \"$@\"", at: program)
                try await expectRefusal(
                    "machine type missing", stage, vm: "still", code: "machine-type-missing",
                    words: ["pc-q35-10.0", stage.destination.endpoint])
            }
        }

        private func lackingDisk(_ stage: FaultStage, _ folder: String) async throws {
            let disk = "\(folder)/disk.img"
            try Data(count: 1 << 20).write(to: URL(fileURLWithPath: disk))
            let words = ["-drive", "if=none,id=disk,file=\(disk),format=raw", "-device", "virtio-blk-pci,drive=disk"]
            try await standing(stage, Self.idleQemu + words) {
                try FileManager.default.removeItem(atPath: disk)
                try await expectRefusal(
                    "disk image missing", stage, vm: "still", code: "qemu-start-failed",
                    words: [disk, stage.destination.endpoint])
            }
        }

        private func lackingMemory(_ stage: FaultStage) async throws {
            let total = try String(contentsOfFile: "/proc/meminfo", encoding: .utf8).split(separator: "\n")[0]
                .split(separator: " ")[1]
            let kiB = try #require(Int(total)) - 256 * 1024
            var command = Self.idleQemu
            command[4] = "\(kiB / 8 * 8)K"
            try await standing(stage, command) {
                try await expectRefusal(
                    "memory lacking", stage, vm: "still", code: "memory-lacking",
                    words: ["MiB", stage.destination.endpoint])
            }
        }

        private static func script(_ text: String, at path: String) throws {
            try "#!/bin/sh\n\(text)\n".write(toFile: path, atomically: true, encoding: .utf8)
            try FileManager.default.setAttributes([.posixPermissions: 0o755], ofItemAtPath: path)
        }
    }
}
