import Foundation
import Testing

@testable import ApusLab

/// Real guests. One at a time: two guests on two cores disturb each other's ticks.
@Suite(.serialized) struct ProverTests {
    private static func small(_ pattern: Workload.Pattern) -> Workload {
        var workload = Workload(name: pattern.rawValue, pattern: pattern)
        workload.memoryKiB = 160 * 1024 + 8
        workload.regionMiB = 24
        workload.hotMiB = 8
        if pattern == .redis { workload.checkShare = 60 }
        workload.pagesPerS = pattern == .idle ? 0 : 2000
        return workload
    }

    private static let regionPages: UInt64 = 24 * 256

    private func boot(_ workload: Workload, in lab: Lab) async throws -> (qemu: LabProcess, console: Console) {
        try workload.disk?.make()
        let image = try GuestImage.find()
        let accelerator = await Accelerator.probe(qemu: QemuProgram.installed, image: image)
        let words = workload.arguments(run: lab.folder, image: image, accelerator: accelerator)
        let qemu = try await lab.start("qemu", [QemuProgram.installed] + words)
        let console = try await Console.connect(path: lab.path("console.sock"))
        return (qemu, console)
    }

    @Test(arguments: Workload.Pattern.allCases)
    func everyPatternProvesItsMemory(_ pattern: Workload.Pattern) async throws {
        try await Lab.with { lab in
            let (_, console) = try await boot(Self.small(pattern), in: lab)
            let verdicts = try await console.verdicts(2, seconds: 60).prefix(2)
            let trace = console.trace
            #expect(verdicts.map(\.isGood) == [true, true])
            // A value of the server is a quarter of a page.
            let pages = Self.regionPages * (pattern == .redis ? 4 : 1)
            #expect(verdicts.map(\.pagesChecked) == [pages, pages])
            #expect(trace.ticks.count > 10)
            #expect(zip(trace.ticks, trace.ticks.dropFirst()).allSatisfy { $1.sequence == $0.sequence + 1 })
            #expect(pattern == .idle || (trace.ticks.last?.work ?? 0) > 0)
            await console.close()
        }
    }

    /// The guest as comparisons use it, with its whole page cache.
    @Test func aGuestProvesItsPageCache() async throws {
        try await Lab.with { lab in
            let workload = try #require(Workload.named("idle-cache"))
            let (_, console) = try await boot(workload, in: lab)
            let verdicts = try await console.verdicts(1, seconds: 90).prefix(1)
            #expect(verdicts.map(\.pagesChecked) == [(64 + 300) * 256])
            await console.close()
        }
    }

    /// Seen from outside: of the pages that changed, those of the hot set differ in exactly as many lines as asked.
    @Test(arguments: [1, 8, 64])
    func asManyLinesChangeAsAsked(_ lines: Int) async throws {
        try await Lab.with { lab in
            var workload = Self.small(.few)
            workload.lines = lines
            workload.zeroPerMille = 0
            workload.hotMiB = 24
            workload.pagesPerS = 300
            workload.ram = .memfd
            let (qemu, console) = try await boot(workload, in: lab)
            try await console.verdicts(1, seconds: 60)
            let memory = try Self.sharedMemory(of: qemu.pid)
            // Stopped while it is read: nobody writes between the page before and the page after.
            func look() throws -> (memory: Data, writes: UInt64) {
                qemu.signal(SIGSTOP)
                defer { qemu.signal(SIGCONT) }
                try memory.seek(toOffset: 0)
                return (try memory.readToEnd() ?? Data(), console.trace.ticks.last?.work ?? 0)
            }
            let before = try look()
            try await wait(for: "200 writes", seconds: 20) {
                (console.trace.ticks.last?.work ?? 0) >= before.writes + 200 ? true : nil
            }
            let after = try look()
            let counts = Self.changedLines(before.memory, after.memory)
            // Two writes to one page count as one page; kernel and stacks change a few pages too.
            #expect(counts.count { $0 == lines } > 150, "\(Dictionary(grouping: counts) { $0 }.mapValues(\.count))")
            await console.close()
        }
    }

    /// For each page that differs, how many of its lines do.
    private static func changedLines(_ before: Data, _ after: Data) -> [Int] {
        stride(from: 0, to: min(before.count, after.count), by: 4096).compactMap { page in
            guard before[page..<page + 4096] != after[page..<page + 4096] else { return nil }
            return stride(from: page, to: page + 4096, by: 64).count { before[$0..<$0 + 64] != after[$0..<$0 + 64] }
        }
    }

    /// The proof of the proof: one word of one page is changed behind the guest's back, and the guest says which.
    @Test func aChangedWordIsFound() async throws {
        try await Lab.with { lab in
            var workload = Self.small(.incompressible)
            workload.pagesPerS = 1
            workload.hotMiB = 1
            workload.ram = .memfd
            let (qemu, console) = try await boot(workload, in: lab)
            try await console.verdicts(1, seconds: 60)
            // Beyond the hot set, so that it is not rewritten: page 1000, version 0.
            let changed = try Self.changeWord(100, ofPage: 1000, in: try Self.sharedMemory(of: qemu.pid))
            try #require(changed > 0)
            let error = await #expect(throws: LabError.self) { try await console.verdicts(1000, seconds: 30) }
            #expect(error.map { "\($0)".contains("BAD page=1000 word=100 ") } == true, "\(String(describing: error))")
            await console.close()
        }
    }

    @Test func aGuestMovedByQemuItselfHasAllItsPages() async throws {
        let image = try GuestImage.find()
        let accelerator = await Accelerator.probe(qemu: QemuProgram.installed, image: image)
        let program = try await QemuProgram.identify(path: QemuProgram.installed)
        let peer = Peer.qemu(PlainQemu(program: program.path, version: program.version, mode: .plain))
        let outcome = try await peer.migrate(
            Self.small(.few), rate: 1_000_000_000, image: image, accelerator: accelerator)
        #expect(outcome.failure == nil)
        #expect(outcome.pagesWrong == 0)
        #expect(outcome.checksAfter >= 1)
        #expect(outcome.ticksAfter > 10)
        let pause = try #require(outcome.pause)
        #expect(pause.ticksLost <= 1, "at most the tick whose line the switch cut")
        #expect(!HostPair.canMakeNamespaces || (outcome.wireBytes ?? 0) > 24 << 20)
    }

    /// The memfd that holds the guest's RAM, through the process that has it open.
    private static func sharedMemory(of pid: Int32) throws -> FileHandle {
        let folder = "/proc/\(pid)/fd"
        for name in try FileManager.default.contentsOfDirectory(atPath: folder) {
            let target = (try? FileManager.default.destinationOfSymbolicLink(atPath: "\(folder)/\(name)")) ?? ""
            if target.contains("memfd:"), let file = FileHandle(forUpdatingAtPath: "\(folder)/\(name)") { return file }
        }
        throw LabError.notEnough(what: "shared memory in process \(pid)")
    }

    /// Flips a bit of a word in every page that begins with this page number and version 0; there is one, the guest's.
    private static func changeWord(_ word: Int, ofPage page: UInt64, in file: FileHandle) throws -> Int {
        let wanted = [page, 0].flatMap { value in (0..<8).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) } }
        var changed = 0, offset: UInt64 = 0
        while let chunk = try file.read(upToCount: 1 << 20), !chunk.isEmpty {
            for start in stride(from: 0, to: chunk.count, by: 4096)
            where chunk[start..<start + 16].elementsEqual(wanted) {
                let place = start + word * 8
                try file.seek(toOffset: offset + UInt64(place))
                try file.write(contentsOf: [chunk[place] ^ 1])
                changed += 1
            }
            offset += UInt64(chunk.count)
            try file.seek(toOffset: offset)
        }
        return changed
    }
}
