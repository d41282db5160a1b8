import ApusAPI
import ApusLab
import ApusSystem
import ApusWire
import Foundation
import Testing

extension RealGuests {
    /// Other programs and other versions at either end of the link.
    @Suite(.enabled(if: HostPair.canMakeNamespaces, "needs root")) struct PeerTests {
        /// One frame as bytes, with what a test wants wrong about it.
        private static func frame(_ kind: FrameKind, _ payload: [UInt8], sequence: UInt64 = 1, version: UInt8? = nil)
            -> Data
        {
            var header = PageBuffer(byteCount: FrameHeader.byteCount)
            FrameHeader(
                kind: kind, lane: 0, length: payload.count, epoch: 0, sequence: sequence,
                checksum: Checksum.of(payload.rawBytes)
            ).store(in: &header)
            var bytes = header.bytes.extracting(0..<FrameHeader.byteCount).bytesCopied
            if let version { bytes[4] = version }
            return Data(bytes + payload)
        }

        private static let hello = frame(.hello, Hello(role: .control).bytes)

        /// A program that answers whoever connects with these bytes, whatever it hears.
        private func answering(_ bytes: Data, _ stage: FaultStage, port: Int, _ body: (String) async throws -> Void)
            async throws
        {
            let file = stage.lab.path("answer-\(port)")
            try bytes.write(to: URL(fileURLWithPath: file))
            let script = "cat \(file); exec sleep 20"
            let process = try await stage.lab.start(
                "peer-\(port)",
                stage.pair.destination.command(["busybox", "nc", "-ll", "-p", "\(port)", "-e", "sh", "-c", script]))
            try await ContinuousClock().sleep(for: .milliseconds(200))
            try await body("\(stage.pair.destination.address):\(port)")
            await process.stop()
        }

        @Test(.timeLimit(.minutes(2))) func whatAnswersIsNotThisVersion() async throws {
            let refusal = Refusal(.version, "This agent speaks protocol 7...9, the peer 1...1.")
            let answers: [(what: String, bytes: Data, code: String, word: String)] = [
                ("refusal of another version", Self.frame(.refusal, refusal.bytes), "peer-version", "7...9"),
                ("frames of another version", Self.frame(.welcome, [0], version: 9), "peer-version", "version 9"),
                (
                    "a web server",
                    Data("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".utf8),
                    "peer-strange", "not an Apus"
                ),
                ("silence", Data(), "peer-unreachable", "timed out"),
            ]
            try await FaultStage.with { stage in
                for (index, answer) in answers.enumerated() {
                    try await answering(answer.bytes, stage, port: 4700 + index) { address in
                        try await fault("dials \(answer.what)", String?.none) {
                            let result = try await stage.source.attempt(["migrate", FaultStage.vm, address, "--json"])
                            #expect(result.exitCode == 1, "\(result)")
                            let job = try Agent.decode(JobStatus.self, result.output)
                            FaultStage.expectsWords(job.error, code: answer.code)
                            #expect(job.error?.message.contains(answer.word) == true, "\(FaultStage.told(job))")
                            #expect(job.error?.message.contains(address) == true)
                            return job
                        }
                    }
                }
                try await stage.expectOneGuest()
            }
        }

        /// Whatever is sent to the link port, the agent goes on, keeps nothing, and moves VMs.
        @Test(.timeLimit(.minutes(3))) func garbageIsSentToTheLinkPort() async throws {
            try await FaultStage.with { stage in
                try await stage.rehearse()
                func send(_ bytes: Data, seconds: Double = 1) async throws -> Data {
                    let file = stage.lab.path("garbage")
                    try bytes.write(to: URL(fileURLWithPath: file))
                    let port = stage.destination.endpoint.split(separator: ":")[1]
                    let out = stage.lab.path("heard")
                    let script =
                        "(cat \(file); sleep \(seconds)) | "
                        + "timeout 12 busybox nc \(stage.pair.destination.address) \(port) > \(out)"
                    let process = try await stage.lab.start("garbage", stage.pair.source.command(["sh", "-c", script]))
                    try await wait(for: "the garbage to be sent", seconds: 20) { process.status }
                    return FileManager.default.contents(atPath: out) ?? Data()
                }
                func control(_ text: String, sequence: UInt64 = 2) -> Data {
                    Self.frame(.control, Array(text.utf8), sequence: sequence)
                }
                let before = stage.destination.holdings()

                try await fault("frames of another version", String?.none) {
                    let answer = try await send(Self.frame(.hello, [1, 2, 3], version: 7))
                    #expect(String(decoding: answer, as: UTF8.self).contains("Install the same release"))
                    return nil
                }
                try await fault("a hello of other versions", String?.none) {
                    let answer = try await send(Self.frame(.hello, Hello(role: .control, versions: 7...9).bytes))
                    #expect(String(decoding: answer, as: UTF8.self).contains("Install the same release"))
                    return nil
                }
                var noise = Seed(state: 42)
                let random = Data((0..<100_000).map { _ in UInt8.random(in: 0...255, using: &noise) })
                let offer =
                    #"{"job":"m-1","kind":"open","body":{"vm":"x","definition":"{}","ramBytes":1,"#
                    + #""qemuVersion":"7.2","guestRunning":true,"options":{}}}"#
                let pieces: [(String, Data)] = [
                    ("noise", random), ("an empty connection", Data()), ("half a header", Self.hello.prefix(20)),
                    ("half a hello", Self.hello.prefix(60)), ("noise after a hello", Self.hello + random),
                    ("half a control frame", Self.hello + control(offer).prefix(70)),
                    ("no JSON", Self.hello + control("{]")), ("a JSON of something else", Self.hello + control("[1]")),
                    ("an offer of nothing", Self.hello + control(offer)),
                    ("a page before any offer", Self.hello + Self.frame(.stream, [1, 2, 3], sequence: 2)),
                    ("a frame twice", Self.hello + control(offer) + control(offer)),
                    ("a lane of nobody", Self.frame(.hello, Hello(role: .lane, lanes: 2, token: .random()).bytes)),
                    ("a commit of nothing", Self.hello + control(#"{"job":"m-2","kind":"commit"}"#)),
                    (
                        "an offer of garbage, then its stream",
                        Self.hello + control(offer.replacing("m-1", with: "m-3"))
                            + Self.frame(.stream, Array(random.prefix(60_000)), sequence: 3)
                    ),
                ]
                for (what, bytes) in pieces {
                    try await fault(what, String?.none) {
                        _ = try await send(bytes, seconds: 0.3)
                        try stage.destination.process.mustRun()
                        return nil
                    }
                }
                try await fault("a hello, and then nothing", String?.none) {
                    let began = ContinuousClock.now
                    _ = try await send(Self.hello, seconds: 11)
                    #expect(ContinuousClock.now - began < .seconds(15))
                    return nil
                }
                try await fault("then a migration", String?.none) {
                    try await stage.expectHoldings(of: stage.destination, before)
                    let job = try await stage.migrate(maxDowntimeMs: FaultStage.converging)
                    return try await stage.settle(job, .completed, moved: true)
                }
            }
        }

        /// A stopped process holds its connections open and reads nothing.
        @Test(.timeLimit(.minutes(2))) func aPeerStopsReading() async throws {
            try await FaultStage.with(reconnectS: 6) { stage in
                try await fault("SIGSTOP of the destination agent", FaultMoment.firstRound) {
                    let job = try await stage.begin(.firstRound)
                    let began = ContinuousClock.now
                    stage.destination.process.signal(SIGSTOP)
                    // Silent for 5 s, then 6 s in which nobody answers.
                    let ended = try await stage.source.end(of: job.id, seconds: 40)
                    #expect(ContinuousClock.now - began < .seconds(25))
                    FaultStage.expectsWords(ended.error, code: "connection-lost")
                    try await stage.console.verdicts(stage.console.trace.verdicts.count + 2, seconds: 60)
                    stage.destination.process.signal(SIGCONT)
                    return try await stage.settle(ended, .failed)
                }
                try await fault("SIGSTOP of the source agent, prepared and not yet committed", FaultMoment.prepared) {
                    let job = try await stage.begin(.stopped, holdMs: 1000)
                    stage.source.process.signal(SIGSTOP)
                    // The destination gets prepared, misses the source, and asks.
                    try await ContinuousClock().sleep(for: .seconds(8))
                    stage.source.process.signal(SIGCONT)
                    let ended = try await stage.source.end(of: job.id, seconds: 30)
                    return try await stage.settle(ended, ended.phase, moved: ended.phase == .completed)
                }
            }
        }

        /// A series of failures leaves nothing in the agents themselves.
        @Test(.timeLimit(.minutes(2))) func agentsKeepNothingOfFailedJobs() async throws {
            try await FaultStage.with { stage in
                try await stage.rehearse()
                var before: [(descriptors: Int, threads: Int)] = []
                for round in 0..<5 {
                    try await fault("aborted migration \(round + 1)", String?.none) {
                        let job = try await stage.begin(.firstRound)
                        try await stage.source.apus(["job", "abort", job.id])
                        return try await stage.settle(job, .aborted)
                    }
                    // The first one warms up whatever is made once.
                    if round == 0 { before = [stage.source, stage.destination].map { $0.holdings() } }
                }
                try await stage.expectHoldings(of: stage.source, before[0])
                try await stage.expectHoldings(of: stage.destination, before[1])
            }
        }

        private struct Seed: RandomNumberGenerator {
            var state: UInt64
            mutating func next() -> UInt64 {
                state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
                return state ^ (state >> 33)
            }
        }
    }
}

extension FaultStage {
    /// No more descriptors and threads than before, but for a few that come and go.
    func expectHoldings(of agent: Agent, _ before: (descriptors: Int, threads: Int)) async throws {
        var now = agent.holdings()
        for _ in 0..<50 where now.descriptors > before.descriptors + 2 || now.threads > before.threads + 3 {
            try await ContinuousClock().sleep(for: .milliseconds(200))
            now = agent.holdings()
        }
        #expect(
            now.descriptors <= before.descriptors + 2 && now.threads <= before.threads + 3,
            "\(agent.name): \(before) -> \(now)")
    }
}
