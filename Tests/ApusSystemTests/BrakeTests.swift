import ApusSystem
import Foundation
import Testing

/// A program that uses all the processor it gets stands for a guest that writes as fast as it may.
@Suite(.serialized) struct BrakeTests {
    private struct Runner {
        let process: ProcessHandle
        var pid: Int32 { process.pid }

        init() throws {
            process = try ProcessHandle.spawn(
                SpawnRequest(
                    executable: "/bin/sh", arguments: ["-c", "while :; do :; done"], logPath: "/dev/null",
                    descriptors: []))
        }

        /// Processor time so far.
        func ms() throws -> Double {
            let words = try ProcFile.read("/proc/\(pid)/schedstat").split(separator: " ")
            return try #require(words.first.flatMap { Double($0) }) / 1e6
        }

        func runs(within seconds: Double = 20) throws -> Bool {
            let (before, began) = (try ms(), Instant.now())
            while try ms() < before + 5 {
                if Instant.now().ms(since: began) > seconds * 1000 { return false }
                pause(ms: 5)
            }
            return true
        }
    }

    private func with(_ body: (Runner, Brake) throws -> Void) throws {
        let runner = try Runner()
        defer { try? runner.process.signal(SIGKILL) }
        let brake = Brake(pid: runner.pid, threads: [runner.pid])
        defer { brake.join() }
        #expect(try runner.runs())
        try body(runner, brake)
    }

    @Test(.timeLimit(.minutes(1))) func itStandsForAShareOfTheTime() throws {
        try with { runner, brake in
            try brake.set(0.9)
            let (before, began) = (try runner.ms(), Instant.now())
            pause(ms: 800)
            let ran = try runner.ms() - before
            #expect(ran < Instant.now().ms(since: began) * 0.5)
            #expect(brake.stoppedNs > 0)
            brake.release()
            #expect(try runner.runs())
        }
    }

    @Test(.timeLimit(.minutes(1))) func itStandsWithoutAMoment() throws {
        try with { runner, brake in
            try brake.set(0.5)
            #expect(try runner.runs())
            try brake.stand(fullyForMs: 20_000)
            // It may have been in a run.
            pause(ms: 100)
            let before = try runner.ms()
            pause(ms: 400)
            #expect(try runner.ms() == before)
            brake.ease()
            #expect(try runner.runs())
        }
    }

    @Test(.timeLimit(.minutes(1))) func aStandHasAnEnd() throws {
        try with { runner, brake in
            try brake.stand(fullyForMs: 200)
            #expect(try runner.runs())
        }
    }

    @Test(.timeLimit(.minutes(1))) func aLostLinkLetsItRun() throws {
        try with { runner, brake in
            try brake.stand(fullyForMs: 20_000)
            brake.hold()
            #expect(brake.standsSince == nil)
            #expect(try runner.runs())
        }
    }
}

@Suite struct BusyMeterTests {
    private func share(of command: String) throws -> Double? {
        let process = try ProcessHandle.spawn(
            SpawnRequest(executable: "/bin/sh", arguments: ["-c", command], logPath: "/dev/null", descriptors: []))
        defer { try? process.signal(SIGKILL) }
        // The shell has begun its command.
        pause(ms: 200)
        let meter = BusyMeter(pid: process.pid, threads: [process.pid])
        pause(ms: 600)
        return meter.share
    }

    /// On a crowded host it waits for a processor for the rest of the time.
    @Test(.timeLimit(.minutes(1))) func whoComputesIsBusy() throws {
        #expect(try #require(try share(of: "while :; do :; done")) > 0.7)
    }

    @Test(.timeLimit(.minutes(1))) func whoWaitsIsNot() throws {
        #expect(try #require(try share(of: "exec sleep 60")) < 0.3)
    }

    @Test func whoIsGoneIsNotKnown() {
        #expect(BusyMeter(pid: 1 << 22, threads: [1 << 22]).share == nil)
    }
}
