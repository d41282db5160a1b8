import ApusLab
import Testing

@Suite struct ConsoleTraceTests {
    private let text = """
        [    0.100000] some kernel message
        T 1 1000000 0
        R pattern=few region=1 hot=1 rate=1 seed=1 disk=0
        T 2 6000000 7
        V 1 ok 32768 7
        BAD page=3 word=9 want=1 got=2 version=4 inpage=4
        V 2 BAD 32768 9
        T 3 11000
        T 4 16000000 20

        """

    @Test func readsEveryKindOfLineHoweverTheBytesAreCut() {
        let bytes = Array(text.utf8), moment = ContinuousClock.now
        var whole = ConsoleTrace()
        whole.feed(bytes, arrived: moment)
        #expect(whole.ticks.map(\.sequence) == [1, 2, 4])
        #expect(whole.ticks.map(\.work) == [0, 7, 20])
        #expect(whole.verdicts.map(\.isGood) == [true, false])
        #expect(whole.wrong.count == 1)
        #expect(whole.isReady)
        #expect(whole.otherLines == 2, "the kernel's line and the tick that was cut short")
        for cut in 0...bytes.count {
            var parts = ConsoleTrace()
            parts.feed(bytes[..<cut], arrived: moment)
            parts.feed(bytes[cut...], arrived: moment)
            #expect(parts == whole, "cut at \(cut)")
        }
    }

    @Test func keepsABoundedNumberOfWrongPages() {
        var trace = ConsoleTrace()
        for _ in 0..<1000 { trace.feed("BAD page=1\n".utf8, arrived: .now) }
        #expect(trace.wrong.count == 64)
    }

    @Test func survivesALineWithoutEnd() {
        var trace = ConsoleTrace()
        trace.feed(Array(repeating: UInt8(ascii: "x"), count: 100_000), arrived: .now)
        trace.feed("\nT 1 2 3\n".utf8, arrived: .now)
        #expect(trace.ticks.count == 1)
    }
}

@Suite struct GuestPauseTests {
    private let origin = ContinuousClock.now

    /// Ticks at these milliseconds, numbered from `first`.
    private func trace(from first: UInt64, at times: [Int]) -> ConsoleTrace {
        var trace = ConsoleTrace()
        for (index, ms) in times.enumerated() {
            trace.feed("T \(first + UInt64(index)) 0 \(ms)\n".utf8, arrived: origin + .milliseconds(ms))
        }
        return trace
    }

    @Test func findsTheSilenceAtTheSwitch() throws {
        let source = trace(from: 1, at: [0, 5, 10, 15, 23, 28])
        let destination = trace(from: 7, at: [128, 133, 138])
        let pause = try #require(
            GuestPause.measure(source: source, destination: destination, started: origin + .milliseconds(25)))
        #expect(pause.downtimeMs == 100)
        #expect(pause.switchMs == 100)
        #expect(pause.noiseMs == 8)
        #expect(pause.stallsMs == 0)
        #expect(pause.ticksLost == 0)
    }

    @Test func tellsHowLongTheGuestsClockRan() throws {
        var source = ConsoleTrace()
        var destination = ConsoleTrace()
        source.feed("T 1 1000000000 0\n".utf8, arrived: origin)
        destination.feed("T 2 1008000000 0\n".utf8, arrived: origin + .milliseconds(24))
        let pause = try #require(GuestPause.measure(source: source, destination: destination, started: origin))
        #expect(pause.switchMs == 24 && pause.switchRunMs == 8)
    }

    /// Post-copy: the switch is short, but the guest then waits for its pages.
    @Test func countsAStallAfterTheSwitchAsDowntime() throws {
        let source = trace(from: 1, at: [0, 5, 10])
        let destination = trace(from: 5, at: [30, 35, 235, 240])
        let pause = try #require(GuestPause.measure(source: source, destination: destination, started: origin))
        #expect(pause.downtimeMs == 200)
        #expect(pause.switchMs == 20)
        #expect(pause.stallsMs == 195)
        #expect(pause.ticksLost == 1)
    }

    @Test func ignoresSilencesFarFromTheSwitch() throws {
        let source = trace(from: 1, at: [0, 5, 800, 1500, 2500, 2505])
        let destination = trace(from: 7, at: [2525, 2530])
        let pause = try #require(GuestPause.measure(source: source, destination: destination, started: origin))
        // The silence that reaches into the window counts, the earlier ones do not.
        #expect(pause.downtimeMs == 1000)
    }

    @Test func saysNothingWithoutTicksOnBothSides() {
        let ticks = trace(from: 1, at: [0])
        #expect(GuestPause.measure(source: ticks, destination: ConsoleTrace(), started: origin) == nil)
        #expect(GuestPause.measure(source: ConsoleTrace(), destination: ticks, started: origin) == nil)
    }

    @Test func measuresTheGuestsSpeed() throws {
        let source = trace(from: 1, at: [0, 500, 1000])
        let speed = try #require(source.workPerS(from: origin, to: origin + .seconds(1)))
        #expect(abs(speed - 1000) < 1e-6)
        #expect(source.workPerS(from: origin + .seconds(2), to: origin + .seconds(3)) == nil)
    }

    @Test func aSilenceAtTheBeginningOfASpanCounts() throws {
        var source = ConsoleTrace()
        for (ms, work) in [(0, 0), (500, 500), (900, 500), (1500, 1100)] {
            source.feed("T \(ms) 0 \(work)\n".utf8, arrived: origin + .milliseconds(ms))
        }
        let speed = try #require(source.workPerS(from: origin + .milliseconds(510), to: origin + .milliseconds(1510)))
        #expect(abs(speed - 600 / 0.99) < 1e-6)
    }

    @Test func tellsWhenTheGuestIsAsFastAgain() throws {
        var trace = ConsoleTrace()
        // 20 units a second at first; from 300 ms on 1000.
        for (index, ms) in stride(from: 0, through: 800, by: 10).enumerated() {
            let work = ms < 300 ? ms / 50 : 6 + ms - 300
            trace.feed("T \(index) 0 \(work)\n".utf8, arrived: origin + .milliseconds(ms))
        }
        #expect(abs(try #require(trace.recoveryMs(to: 950)) - 300) <= 10)
        #expect(trace.recoveryMs(to: 15) == 0)
        #expect(trace.recoveryMs(to: 2000) == nil)
        #expect(ConsoleTrace().recoveryMs(to: 1) == nil)
    }
}
