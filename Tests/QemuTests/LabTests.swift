import ApusLab
import Foundation
import Testing

/// With nothing beside: hosts are joined by the kernel, at its leisure when the processors are busy.
extension RealGuests {
    @Suite struct LabTests {
        private struct Failure: Error {}

        @Test func clearsEverythingAwayAfterAnError() async throws {
            var folder = "", process: LabProcess?
            await #expect(throws: Failure.self) {
                try await Lab.with { lab in
                    folder = lab.folder
                    process = try await lab.start("sleeper", ["sleep", "100"])
                    #expect(process?.status == nil)
                    #expect(FileManager.default.fileExists(atPath: folder))
                    throw Failure()
                }
            }
            #expect(!FileManager.default.fileExists(atPath: folder))
            #expect(process?.status != nil)
        }

        @Test func endsAProcessThatDoesNotListen() async throws {
            let process = try await Lab.with { lab in
                let process = try await lab.start(
                    "deaf", ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done"])
                try await wait(for: "the trap", seconds: 30) { process.logEnd().contains("up") ? true : nil }
                await process.stop(graceSeconds: 0.3)
                return process
            }
            #expect(process.status?.contains("9") == true)
        }

        /// As an agent's QEMUs are: started by a process of ours that is gone, known only by the folder on their command line.
        @Test func endsWhatItsProcessesLeft() async throws {
            let stranger = try await Lab.with { lab in
                let words = ["sh", "-c", "(exec sh -c 'while :; do sleep 0.1; done' \(lab.path("x"))) &"]
                let parent = try await lab.start("parent", words)
                try await wait(for: "the parent", seconds: 30) { parent.status }
                return try #require(lab.strangers.first)
            }
            // Its entry may stay until process 1 collects it, but it runs no program any more.
            #expect((FileManager.default.contents(atPath: "/proc/\(stranger)/cmdline") ?? Data()).isEmpty)
        }

        @Test func saysWhatAnEndedProcessPrinted() async throws {
            try await Lab.with { lab in
                let process = try await lab.start("talker", ["sh", "-c", "echo reason >&2; exit 3"])
                try await wait(for: "its end", seconds: 30) { process.status }
                let error = #expect(throws: LabError.self) { try process.mustRun() }
                #expect(error.map { "\($0)".contains("reason") } == true)
            }
        }

        @Test func boundsItsWaits() async throws {
            await #expect(throws: LabError.timedOut(what: "nothing", seconds: 0.05)) {
                try await wait(for: "nothing", seconds: 0.05) { nil as Int? }
            }
        }

        @Test(.enabled(if: HostPair.canMakeNamespaces, "needs root"))
        func joinsTwoHostsAndCountsTheirBytes() async throws {
            let namespaces = try await Lab.with { lab in
                let pair = try await HostPair.make(in: lab, rate: 100_000_000)
                let before = try #require(try await pair.wireBytes())
                let file = lab.path("received")
                let send = "head -c 3000000 /dev/zero | busybox nc \(pair.destination.address) 4000"
                _ = try await lab.start(
                    "listener",
                    pair.destination.command(["busybox", "nc", "-l", "-p", "4000", "-e", "sh", "-c", "cat >\(file)"]))
                _ = try await lab.start(
                    "sender", pair.source.command(["sh", "-c", "until \(send); do sleep 0.1; done"]))
                try await wait(for: "3 MB to arrive", seconds: 20) {
                    let size = try? FileManager.default.attributesOfItem(atPath: file)[.size] as? Int
                    return size == 3_000_000 ? true : nil
                }
                let counted = try #require(try await pair.wireBytes()) - before
                #expect(counted.toDestination > 3_000_000)
                #expect(counted.toDestination < 3_400_000)
                try await pair.setLink(up: false)
                try await pair.setLink(up: true)
                return [pair.source, pair.destination].compactMap(\.namespace)
            }
            #expect(namespaces.count == 2)
            for name in namespaces { #expect(!FileManager.default.fileExists(atPath: "/run/netns/\(name)")) }
        }

        @Test(.enabled(if: HostPair.canMakeNamespaces, "needs root"))
        func resetsConnections() async throws {
            try await Lab.with { lab in
                let pair = try await HostPair.make(in: lab, rate: nil)
                let listen = ["busybox", "nc", "-l", "-p", "4000", "-e", "sleep", "30"]
                _ = try await lab.start("listener", pair.destination.command(listen))
                let connect = "sleep 30 | { until busybox nc \(pair.destination.address) 4000; do sleep 0.1; done; }"
                let client = try await lab.start("client", pair.source.command(["sh", "-c", connect]))
                try await wait(for: "the connection", seconds: 30) {
                    try client.mustRun()
                    return try await pair.connections.isEmpty ? nil : true
                }
                try await pair.resetConnections(of: pair.destination)
                try await wait(for: "the reset", seconds: 30) { try await pair.connections.isEmpty ? true : nil }
            }
        }

        /// Time and rate of a wire, with one message to and fro and with a stream.
        @Test(.enabled(if: HostPair.canMakeNamespaces, "needs root"), .timeLimit(.minutes(2)), arguments: [2.0, 5.0])
        func aSlowWireIsAsSlowAsItShouldBe(rttMs: Double) async throws {
            try await Lab.with { lab in
                let pair = try await HostPair.make(in: lab, rate: 1_000_000_000, rttMs: rttMs)
                let echo = ["busybox", "nc", "-ll", "-p", "4000", "-e", "cat"]
                let ping = "busybox ping -c 20 -i 0.05 \(pair.destination.address)"
                let said = try await pair.source.attempt(["sh", "-c", ping]).output
                // round-trip min/avg/max = 5.051/5.104/5.291 ms
                let times = said.split(separator: "=").last?.split(separator: "/").compactMap {
                    Double($0.trimmingPrefix(" "))
                }
                let least = try #require(times?.first, "\(said)")
                #expect(least >= rttMs && least < rttMs + 1, "\(said)")
                _ = try await lab.start("echo", pair.destination.command(echo))
                let bytes = 50_000_000
                let send =
                    "until busybox nc \(pair.destination.address) 4000 </dev/null; do sleep 0.1; done; "
                    + "head -c \(bytes) /dev/zero | busybox nc \(pair.destination.address) 4000 | wc -c"
                let before = try #require(try await pair.wireBytes())
                let began = ContinuousClock.now
                let heard = try await pair.source.attempt(["sh", "-c", send]).output
                let seconds = (ContinuousClock.now - began) / .seconds(1)
                #expect(heard.contains("\(bytes)"), "\(heard)")
                let counted = try #require(try await pair.wireBytes()) - before
                print("RTT \(rttMs) ms: least \(least) ms, \(bytes) bytes to and fro in \(seconds) s")
                #expect(counted.toDestination > UInt64(bytes) && counted.toDestination < UInt64(bytes) * 11 / 10)
                // Never faster than the rate; the cores may be somebody else's, so not much slower either.
                #expect(seconds > 0.4 && seconds < 8)
                try await pair.setLink(up: false)
                let once = ["busybox", "ping", "-c", "1", "-W", "2", pair.destination.address]
                #expect(try await pair.source.attempt(once).exitCode != 0)
                try await pair.setLink(up: true)
                #expect(try await pair.source.attempt(once).exitCode == 0)
            }
        }
    }
}
