import ApusLab
import Foundation
import Testing

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
                return try await pair.hasConnections ? true : nil
            }
            try await pair.resetConnections(of: pair.destination)
            try await wait(for: "the reset", seconds: 30) { try await pair.hasConnections ? nil : true }
        }
    }
}
