import ApusAPI
import ApusLab
import ApusSystem
import Foundation
import Testing

extension RealGuests {
    /// A guest that writes three times what the link carries, every page anew: what is allowed decides how it ends.
    @Suite(.enabled(if: HostPair.canMakeNamespaces, "needs root")) struct LadderTests {
        /// 24 MB, of which the link of 25 MB/s carries a quarter in the allowed pause.
        private static var writer: Workload {
            var workload = FaultStage.workload
            workload.hotMiB = 24
            workload.pagesPerS = 18_000
            workload.checkShare = 10
            return workload
        }
        private static let maxDowntimeMs = 300
        /// A ramDirectory that leaves guest RAM private to QEMU.
        private static let noRoom = "/proc"

        private func with(_ port: ApusPeer.Port, _ body: (FaultStage) async throws -> Void) async throws {
            try await FaultStage.with(port: port, workload: Self.writer, body)
        }

        private func move(
            _ stage: FaultStage, _ options: [String], maxDowntimeMs: Int = LadderTests.maxDowntimeMs
        ) async throws -> JobStatus {
            let text = try await stage.source.apus(
                [
                    "migrate", FaultStage.vm, stage.destination.endpoint, "--detach", "--json", "--port",
                    stage.port.rawValue, "--max-downtime", "\(maxDowntimeMs)",
                ] + options)
            return try Agent.decode(JobStatus.self, text)
        }

        /// No thread of it is in anybody's hands.
        private func expectUntraced(_ agent: Agent, _ known: Int32? = nil) async throws {
            let asked = known == nil ? try await agent.qemuPID(of: FaultStage.vm) : nil
            let pid = try #require(known ?? asked)
            for thread in try ProcFile.numbers(in: "/proc/\(pid)/task") {
                guard let status = try? ProcFile.read("/proc/\(pid)/task/\(thread)/status") else { continue }
                #expect(ProcFile.field("TracerPid", of: status) == "0")
                #expect(ProcFile.field("State", of: status)?.hasPrefix("t") == false)
            }
        }

        @Test(.timeLimit(.minutes(3)), arguments: [ApusPeer.Port.direct, .stream])
        func itIsSlowedDownUntilItFits(port: ApusPeer.Port) async throws {
            try await with(port) { stage in
                let job = try await move(stage, ["--allow", "throttle"])
                let ended = try await stage.settle(job, .completed, moved: true, seconds: 60)
                let summary = try #require(ended.summary)
                print(
                    "ladder | \(port.rawValue) | \(summary.totalMs) ms, \(summary.downtimeMs ?? -1) ms down, "
                        + "predicted \(summary.predictedDowntimeMs ?? -1), to \(summary.slowedTo ?? -1) | \(ended.notes)"
                )
                #expect(summary.slowedTo.map { $0 < 0.9 } == true && (summary.slowedMs ?? 0) > 0, "\(summary)")
                #expect(summary.downtimeMs.map { $0 <= Double(Self.maxDowntimeMs) } == true, "\(summary)")
                #expect(summary.predictedDowntimeMs.map { $0 <= Double(Self.maxDowntimeMs) } == true, "\(summary)")
                #expect(ended.notes.contains { $0.contains("slowed down") })
                try await expectUntraced(stage.source)
            }
        }

        /// It writes half as much, and must not be slowed down as if it wrote all the time.
        @Test(.timeLimit(.minutes(3))) func itIsSlowedDownNoFurtherThanItTakes() async throws {
            var busy = Self.writer
            busy.pagesPerS = 9_000
            try await FaultStage.with(port: .stream, workload: busy) { stage in
                let job = try await move(stage, ["--allow", "throttle"])
                let ended = try await stage.settle(job, .completed, moved: true, seconds: 60)
                let summary = try #require(ended.summary)
                print(
                    "ladder | stream, half | \(summary.totalMs) ms, \(summary.downtimeMs ?? -1) ms down, "
                        + "predicted \(summary.predictedDowntimeMs ?? -1), to \(summary.slowedTo ?? -1) | \(ended.notes)"
                )
                // How far it takes depends on the host: on a busy one it writes less, and may need nothing. The first step is not the
                // last, and each is needed.
                let steps = ended.notes.compactMap {
                    $0.firstMatch(
                        of: /slowed down to (\d+) % .* a pause now would take (\d+) ms of the 300 ms allowed(.*)/)
                }
                #expect(steps.isEmpty == (summary.slowedTo == nil), "\(ended.notes)")
                #expect(steps.first.flatMap { Int($0.1) }.map { $0 > 2 } ?? true, "\(ended.notes)")
                // What QEMU does not count makes the pause longer than what it is given.
                let needed = steps.allSatisfy {
                    Int($0.2).map { $0 > 250 } == true || $0.3.contains("QEMU has not stopped it")
                }
                #expect(needed, "\(ended.notes)")
                #expect(summary.downtimeMs.map { $0 <= Double(Self.maxDowntimeMs) } == true, "\(summary)")
                #expect(summary.predictedDowntimeMs != nil, "\(summary)")
            }
        }

        /// Says before what will be done, and keeps what became of it.
        @Test(.timeLimit(.minutes(3))) func itIsForetold() async throws {
            try await with(.direct) { stage in
                let (vm, host) = (FaultStage.vm, stage.destination.endpoint)
                let plan = try Agent.decode(
                    PlanReport.self, try await stage.source.apus(["plan", vm, host, "--json"], seconds: 60))
                let best = try #require(plan.options.first)
                // A host that is busy lets it write less.
                #expect(best.mode == .dsm && best.port == .direct && best.ending != .tooBusy, "\(plan)")
                #expect(best.ending != .slowed || best.slowedTo.map { $0 < 0.9 } == true, "\(plan)")
                #expect(plan.options.contains { $0.mode == .hybrid && $0.ending == .follows })
                #expect(plan.options.contains { $0.mode == .postcopy })
                let job = try await move(stage, ["--allow", "throttle,postcopy"])
                try await stage.settle(job, .completed, moved: true, seconds: 60)
                // The source is the other one now.
                let record = try Agent.decode(
                    AccuracyReport.self, try await stage.destination.apus(["plan", "--accuracy", "--json"]))
                let latest = try #require(record.latest.first)
                print("ladder | plan \(best) | \(latest)")
                #expect(record.latest.count == 1 && latest.basis == .plan && latest.atGate != nil, "\(record)")
                #expect(latest.atStart.map { (0.3...3).contains($0.wireBytes / latest.actual.wireBytes) } == true)
                let text = try await stage.destination.apus(["plan", "--accuracy"])
                #expect(text.contains("at the start") && text.contains("%"), "\(text)")
            }
        }

        /// Private memory is what the stream port is for.
        @Test(
            .timeLimit(.minutes(3)),
            arguments: [(ApusPeer.Port.direct, false), (.stream, false), (.auto, true)])
        func itMovesBeforeItsMemory(port: ApusPeer.Port, isPrivate: Bool) async throws {
            try await FaultStage.with(
                port: port, workload: Self.writer, ramDirectory: isPrivate ? Self.noRoom : nil
            ) { stage in
                let job = try await move(stage, ["--allow", "postcopy"])
                let ended = try await stage.settle(job, .completed, moved: true, seconds: 60)
                let pull = try #require(ended.summary?.pull)
                print(
                    "ladder | \(port.rawValue), postcopy | \(ended.summary?.downtimeMs ?? -1) ms down, \(pull) | \(ended.notes)"
                )
                #expect(ended.summary?.port == (port == .direct ? .direct : .stream))
                #expect(pull.missingPages > 1000 && ended.summary?.slowedTo == nil)
                #expect(ended.notes.contains { $0.contains("moves before its memory") })
            }
        }

        /// A guest that is no trouble moves after its memory, whatever is allowed.
        @Test(.timeLimit(.minutes(3)), arguments: [false, true])
        func whatIsNotNeededIsNotDone(isPrivate: Bool) async throws {
            var calm = Self.writer
            calm.pagesPerS = 500
            try await FaultStage.with(
                port: isPrivate ? .auto : .stream, workload: calm, ramDirectory: isPrivate ? Self.noRoom : nil
            ) { stage in
                let job = try await move(stage, ["--allow", "throttle,postcopy"])
                let ended = try await stage.settle(job, .completed, moved: true, seconds: 60)
                #expect(ended.summary?.port == .stream && ended.summary?.slowedTo == nil, "\(FaultStage.told(ended))")
                #expect(ended.summary?.pull?.missingPages ?? 0 == 0, "\(FaultStage.told(ended))")
                #expect(!ended.notes.contains { $0.contains("before its memory") }, "\(FaultStage.told(ended))")
            }
        }

        /// The deadline passes in the middle of the first pass.
        @Test(.timeLimit(.minutes(3)), arguments: [ApusPeer.Port.direct, .stream])
        func aDeadlineIsKept(port: ApusPeer.Port) async throws {
            try await FaultStage.with(rate: 50_000_000, port: port, workload: Self.writer) { stage in
                let job = try await move(stage, ["--allow", "postcopy", "--deadline", "3"])
                let ended = try await stage.settle(job, .completed, moved: true, seconds: 60)
                #expect(ended.summary?.pull.map { $0.missingPages > 5000 } == true, "\(FaultStage.told(ended))")
            }
        }

        /// Some 60 MB take the link ten seconds.
        @Test(.timeLimit(.minutes(3)), arguments: [ApusPeer.Port.direct, .stream])
        func aDeadlineInTheFirstPassIsTold(port: ApusPeer.Port) async throws {
            var calm = FaultStage.workload
            calm.pagesPerS = 200
            try await FaultStage.with(rate: 50_000_000, port: port, workload: calm) { stage in
                let job = try await move(stage, ["--allow", "none", "--deadline", "3"])
                let ended = try await stage.settle(job, .failed, seconds: 30)
                FaultStage.expectsWords(ended.error, code: "deadline-too-near")
                #expect(ended.error?.message.contains("deadline of 3.0 s") == true)
                #expect(ended.error?.advice?.contains("allow postcopy") == true)
                // It says how much longer it would have taken, and that is true.
                let advised = try #require(ended.error?.advice?.firstMatch(of: /give it ([0-9]+) s/)?.1)
                let seconds = try #require(Int(advised))
                #expect((5...60).contains(seconds), "\(FaultStage.told(ended))")
                let again = try await move(stage, ["--allow", "none", "--deadline", "\(2 * seconds)"])
                try await stage.settle(again, .completed, moved: true, seconds: 120)
            }
        }

        @Test(.timeLimit(.minutes(3)), arguments: [ApusPeer.Port.direct, .stream])
        func withNothingAllowedItStays(port: ApusPeer.Port) async throws {
            try await with(port) { stage in
                let job = try await move(stage, ["--allow", "none", "--deadline", "6"])
                let ended = try await stage.settle(job, .failed, seconds: 60)
                FaultStage.expectsWords(ended.error, code: "guest-too-busy")
                #expect(ended.error?.message.contains("of the 300 ms allowed") == true)
                #expect(ended.error?.advice?.contains("--max-downtime") == true)
                try await expectUntraced(stage.source)
            }
        }

        @Test(.timeLimit(.minutes(3))) func anAgentThatIsKilledLeavesNobodyStanding() async throws {
            try await with(.direct) { stage in
                // Hardly any room: it is slow for seconds.
                let job = try await move(stage, ["--allow", "throttle"], maxDowntimeMs: 60)
                try await stage.source.job(of: FaultStage.vm, seconds: 30) { now in
                    now.phase.isFinal || now.notes.contains { $0.contains("slowed down") }
                }
                let pid = try await stage.source.qemuPID(of: FaultStage.vm)
                try await stage.source.kill()
                try await expectUntraced(stage.source, pid)
                let work = stage.console.trace.verdicts.count
                try await stage.console.verdicts(work + 1, seconds: 60)
                try await stage.restart(stage.source)
                let ended = try await stage.settle(job, .failed)
                FaultStage.expectsWords(ended.error, code: "agent-restarted")
            }
        }
    }
}
