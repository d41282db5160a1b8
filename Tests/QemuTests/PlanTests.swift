import ApusAPI
import ApusLab
import ApusSystem
import Foundation
import Testing

extension RealGuests {
    /// Forecasts of a real guest: that they are near what then comes, and that looking leaves nothing behind.
    @Suite(.enabled(if: HostPair.canMakeNamespaces, "needs root")) struct PlanTests {
        private static let vm = "g"

        private func with(
            ram: Workload.RAM, hotMiB: Int? = nil, pagesPerS: Int,
            _ body: (_ source: Agent, _ destination: Agent) async throws -> Void
        ) async throws {
            try await Lab.with { lab in
                let pair = try await HostPair.make(in: lab, rate: 1_000_000_000)
                let peer = ApusPeer(program: ApusPeer.findProgram(), qemu: QemuProgram.installed)
                let source = try await Agent.start("a", peer, pair.source, lab, port: 4600)
                let destination = try await Agent.start("b", peer, pair.destination, lab, port: 4601)
                let image = try GuestImage.find()
                let accelerator = await Accelerator.probe(qemu: QemuProgram.installed, image: image)
                var workload = FaultStage.workload
                workload.ram = ram
                workload.pagesPerS = pagesPerS
                workload.hotMiB = hotMiB ?? workload.hotMiB
                let arguments = workload.arguments(run: "{run}", image: image, accelerator: accelerator)
                let command = ["vm", "run", Self.vm, "--", QemuProgram.installed]
                try await source.apus(command + arguments)
                let console = try await Console.connect(path: source.consolePath(of: Self.vm))
                lab.later("console") { await console.close() }
                try await console.verdicts(1, seconds: 90)
                try await body(source, destination)
            }
        }

        private func plan(_ source: Agent, _ destination: Agent, _ options: [String] = []) async throws -> PlanReport {
            let words = ["plan", Self.vm, destination.endpoint, "--json"] + options
            return try Agent.decode(PlanReport.self, try await source.apus(words, seconds: 60))
        }

        @Test(.timeLimit(.minutes(3))) func itForetellsTheDirectPort() async throws {
            try await with(ram: .plain, pagesPerS: 1500) { source, destination in
                let plan = try await plan(source, destination)
                // The link is shaped to 1 Gb/s.
                #expect((60e6...130e6).contains(plan.linkBytesPerS), "\(plan)")
                #expect(plan.options.map(\.port) == [.direct, .stream, .direct, .direct])
                #expect(plan.options.map(\.mode) == [.dsm, .dsm, .hybrid, .postcopy])
                #expect((2e6...13e6).contains(plan.writtenBytesPerS), "\(plan)")
                let best = try #require(plan.options.first)
                #expect(best.ending != .tooBusy)
                // Whoever was looked at can go at once, and nothing was left in it.
                let machines = try await source.machines()
                #expect(machines.first?.job == nil)
                let text = try await source.apus(
                    ["migrate", Self.vm, destination.endpoint, "--json", "--port", "direct"], seconds: 90)
                let last = try #require(text.split(separator: "\n").last.map(String.init))
                let job = try (try? Agent.decode(JobStatus.self, last)) ?? Agent.decode(JobStatus.self, text)
                let summary = try #require(job.summary)
                #expect(job.phase == .completed, "\(job)")
                // Far off is wrong; how near it comes is measured by `bench plan`.
                let bytes = best.wireBytes.likely / Double(summary.wireBytes)
                #expect((0.7...1.4).contains(bytes), "\(best.wireBytes) \(summary.wireBytes)")
            }
        }

        /// Looks of the first pass count what was written since it began, not since the guest has been watched: its first ones, of
        /// 25 ms, would show several times as much.
        @Test(.timeLimit(.minutes(3))) func noLookCountsWhatWasWrittenBefore() async throws {
            try await with(ram: .plain, hotMiB: 24, pagesPerS: 20_000) { source, destination in
                let text = try await source.apus(
                    [
                        "migrate", Self.vm, destination.endpoint, "--json", "--verbose", "--port", "direct",
                        "--bandwidth",
                        "20",
                    ], seconds: 90)
                let news = try text.split(separator: "\n").map { try Agent.decode(JobStatus.self, String($0)) }
                let rates = news.filter { !$0.phase.isFinal && $0.progress.round == 1 }
                    .map(\.progress.dirtyRateBytesPerS).filter { $0 > 0 }
                // What the guest writes, and some pages of its kernel's.
                let mostBytesPerS = 20_000.0 * 4096
                #expect(rates.count > 3 && rates.allSatisfy { $0 < 1.5 * mostBytesPerS }, "\(rates)")
            }
        }

        @Test(.timeLimit(.minutes(3))) func aPrivateGuestIsAskedOfQemu() async throws {
            try await with(ram: .anonymous, pagesPerS: 1500) { source, destination in
                let plan = try await plan(source, destination)
                #expect(plan.options.map(\.port) == [.stream], "\(plan)")
                #expect(plan.notes.contains { $0.contains("direct port") })
                #expect(plan.writtenBytesPerS > 1e6, "\(plan)")
            }
        }

        @Test(.timeLimit(.minutes(3))) func whatCannotEndIsSaid() async throws {
            try await with(ram: .plain, pagesPerS: 1500) { source, destination in
                // A pause that the fixed part alone exceeds.
                let plan = try await plan(source, destination, ["--max-downtime", "1", "--seconds", "0.5"])
                #expect(plan.options.allSatisfy { $0.ending == .tooBusy && $0.downtimeMs.likely > 1 }, "\(plan)")
                let text = try await source.apus(
                    ["plan", Self.vm, destination.endpoint, "--max-downtime", "1", "--seconds", "0.5"])
                #expect(text.contains("with --max-downtime"), "\(text)")
                let bad = try await source.attempt(["plan", "nobody", destination.endpoint])
                #expect(bad.exitCode == 1 && bad.errors.contains("nobody"), "\(bad)")
                let nowhere = try await source.attempt(["plan", Self.vm, "127.0.0.1:1"])
                #expect(nowhere.exitCode == 1 && nowhere.errors.contains("cannot be reached"), "\(nowhere)")
                #expect(try await source.machines().first?.job == nil)
            }
        }
    }
}
