import ApusLab
import CApus
import Foundation
import Testing

@testable import ApusSystem

/// On the real kernel: needs root, ptrace and Linux 6.7.
@Suite(.serialized, .enabled(if: WriteTracker.hostLacks() == nil, "this host cannot enter processes"))
struct WriteTrackerTests {
    @Test(.timeLimit(.minutes(2))) func noWriteIsMissed() throws {
        let target = try WriteTarget()
        let tracker = try WriteTracker.attach(pid: target.pid, areas: target.areas, journal: target.journal)
        var shared = Replica(target.shared, of: target.pid)
        var anonymous = Replica(target.anonymous, of: target.pid)
        try shared.copyAll()
        try anonymous.copyAll()
        var taken: UInt64 = 0
        for round in 0..<40 {
            // While it writes: what is copied may be old already, but then it is reported again.
            for _ in 0..<3 { taken += try take(tracker, &shared, &anonymous) }
            try target.standStill()
            taken += try take(tracker, &shared, &anonymous)
            let wrong = try (shared.wrongPages(), anonymous.wrongPages())
            #expect(wrong.0 == [] && wrong.1 == [], "round \(round)")
            #expect(try tracker.writtenBytes() == 0)
            try target.goOn()
        }
        #expect(taken > 40 * 4096, "the target did not write")
        try tracker.detach()
        #expect(target.isWell())
    }

    private func take(
        _ tracker: WriteTracker, _ shared: inout Replica, _ anonymous: inout Replica
    ) throws -> UInt64 {
        var runs: [(Int, UInt64, UInt64)] = []
        try tracker.takeWritten { runs.append(($0, $1, $2)) }
        for (area, offset, byteCount) in runs {
            if area == 0 { try shared.copy(offset, byteCount) } else { try anonymous.copy(offset, byteCount) }
        }
        return runs.reduce(0) { $0 + $1.2 }
    }

    @Test func aHoleThatIsFilledIsReported() throws {
        let target = try WriteTarget()
        try target.standStill()
        let tracker = try WriteTracker.attach(pid: target.pid, areas: target.areas, journal: target.journal)
        #expect(try tracker.writtenBytes() == 0)
        let holes: [UInt64] = [20 << 20, 24 << 20, (32 << 20) - 4096]
        for hole in holes { try target.write(at: hole) }
        #expect(try tracker.writtenBytes() == 6 * 4096)
        var found: [[UInt64]] = [[], []]
        try tracker.takeWritten { area, offset, byteCount in
            #expect(byteCount == 4096)
            found[area].append(offset)
        }
        #expect(found == [holes, holes])
        #expect(try tracker.writtenBytes() == 0)
        try tracker.detach()
    }

    /// The kernel hands out 512 runs at a time.
    @Test func everyRunIsReportedOnce() throws {
        let target = try WriteTarget()
        try target.standStill()
        let tracker = try WriteTracker.attach(pid: target.pid, areas: target.areas, journal: target.journal)
        let pages = (0..<1100).map { UInt64($0) * 7 * 4096 }
        for page in pages { try target.write(at: page) }
        #expect(try tracker.writtenBytes() == UInt64(2 * pages.count) * 4096)
        var found: [[UInt64]] = [[], []]
        try tracker.takeWritten { area, offset, _ in found[area].append(offset) }
        #expect(found == [pages, pages])
        try tracker.detach()
    }

    @Test func aPageGivenBackIsReportedWhenItIsWrittenAgain() throws {
        let target = try WriteTarget()
        try target.standStill()
        let tracker = try WriteTracker.attach(pid: target.pid, areas: target.areas, journal: target.journal)
        try target.discard(at: 8192)
        try tracker.takeWritten { _, _, _ in }
        try target.write(at: 8192)
        var found: [UInt64] = []
        try tracker.takeWritten { _, offset, _ in found.append(offset) }
        #expect(found == [8192, 8192])
        try tracker.detach()
    }

    @Test func nothingIsLeftBehind() throws {
        let target = try WriteTarget()
        for _ in 0..<5 {
            let tracker = try WriteTracker.attach(pid: target.pid, areas: target.areas, journal: target.journal)
            #expect(target.userfaultfds.count == 1)
            #expect(try target.isTracked())
            #expect(FileManager.default.fileExists(atPath: target.journal))
            try tracker.detach()
            try tracker.detach()
            #expect(target.userfaultfds == [])
            #expect(try !target.isTracked())
            #expect(!FileManager.default.fileExists(atPath: target.journal))
            #expect(throws: SystemError.self) { try tracker.takeWritten { _, _, _ in } }
        }
        #expect(target.isWell())
    }

    @Test(arguments: [true, false]) func aSuccessorTakesItOut(knowsTheNumber: Bool) throws {
        let target = try WriteTarget()
        // Dropped without `detach`: what an agent leaves that was killed.
        _ = try WriteTracker.attach(pid: target.pid, areas: target.areas, journal: target.journal)
        #expect(try target.isTracked())
        if !knowsTheNumber {
            let lines = try String(contentsOfFile: target.journal, encoding: .utf8).split(separator: "\n")
            let early = lines.filter { !$0.hasPrefix("descriptor") }.joined(separator: "\n") + "\n"
            try early.write(toFile: target.journal, atomically: true, encoding: .utf8)
        }
        #expect(throws: InjectionError.journalExists(path: target.journal)) {
            try WriteTracker.attach(pid: target.pid, areas: target.areas, journal: target.journal)
        }
        try WriteTracker.cleanUp(journal: target.journal)
        #expect(target.userfaultfds == [])
        #expect(try !target.isTracked())
        #expect(!FileManager.default.fileExists(atPath: target.journal))
        // There is nothing to do now, and that is no error.
        try WriteTracker.cleanUp(journal: target.journal)
        #expect(target.isWell())
    }

    @Test func aSecondTrackerIsRefusedAndTheFirstGoesOn() throws {
        let target = try WriteTarget()
        try target.standStill()
        let first = try WriteTracker.attach(pid: target.pid, areas: target.areas, journal: target.journal)
        #expect(throws: InjectionError.memoryTaken(pid: target.pid)) {
            try WriteTracker.attach(pid: target.pid, areas: target.areas, journal: target.journal + "2")
        }
        #expect(target.userfaultfds.count == 1)
        #expect(!FileManager.default.fileExists(atPath: target.journal + "2"))
        try target.write(at: 4096)
        #expect(try first.writtenBytes() == 2 * 4096)
        try first.detach()
    }

    @Test func aJournalOfAnotherProcessIsOnlyRemoved() throws {
        let target = try WriteTarget()
        let tracker = try WriteTracker.attach(pid: target.pid, areas: target.areas, journal: target.journal)
        // The same pid, at another time.
        let other = try String(contentsOfFile: target.journal, encoding: .utf8)
            .replacing("process \(target.pid) ", with: "process \(target.pid) 9")
        try other.write(toFile: target.journal + "2", atomically: true, encoding: .utf8)
        try WriteTracker.cleanUp(journal: target.journal + "2")
        #expect(!FileManager.default.fileExists(atPath: target.journal + "2"))
        #expect(target.userfaultfds.count == 1)
        try "apus-injection 99\n".write(toFile: target.journal + "2", atomically: true, encoding: .utf8)
        #expect(throws: InjectionError.journalUnreadable(path: target.journal + "2")) {
            try WriteTracker.cleanUp(journal: target.journal + "2")
        }
        try tracker.detach()
    }

    @Test func aProcessThatHasGone() async throws {
        let target = try WriteTarget()
        let tracker = try WriteTracker.attach(pid: target.pid, areas: target.areas, journal: target.journal)
        await target.kill()
        #expect(throws: SystemError.self) { try tracker.takeWritten { _, _, _ in } }
        try tracker.detach()
        #expect(!FileManager.default.fileExists(atPath: target.journal))
        #expect(throws: InjectionError.processGone(pid: target.pid)) {
            try WriteTracker.attach(pid: target.pid, areas: target.areas, journal: target.journal)
        }
        #expect(!FileManager.default.fileExists(atPath: target.journal))
    }

    @Test func aProcessThatIsTracedAlready() throws {
        let target = try WriteTarget()
        let ids = try ProcFile.numbers(in: "/proc/\(target.pid)/task")
        // All on the tracer's thread, which is what has the threads.
        let (error, count) = try Injector.onTracer { () throws(InjectionError) -> (InjectionError?, Int) in
            let held = try StoppedThreads.stop(ids, of: target.pid, pastSeccomp: false)
            var refusal: InjectionError?
            do throws(InjectionError) {
                _ = try WriteTracker.attach(pid: target.pid, areas: target.areas, journal: target.journal)
            } catch {
                refusal = error
            }
            return (refusal, held.count)
        }
        #expect(count == ids.count)
        #expect(error == .alreadyTraced(pid: target.pid, by: getpid()))
        #expect(!FileManager.default.fileExists(atPath: target.journal))
        #expect(target.isWell())
    }

    @Test func aStoppedProcessStaysStopped() throws {
        let target = try WriteTarget()
        try target.process.signal(SIGSTOP)
        let tracker = try WriteTracker.attach(pid: target.pid, areas: target.areas, journal: target.journal)
        try tracker.detach()
        #expect(try ProcFile.read("/proc/\(target.pid)/status").contains("State:\tT (stopped)"))
        #expect(target.userfaultfds == [])
        try target.process.signal(SIGCONT)
        #expect(target.isWell())
    }

    @Test func aFilteredProcessIsEntered() throws {
        let target = try WriteTarget(isFiltered: true)
        let tracker = try WriteTracker.attach(pid: target.pid, areas: target.areas, journal: target.journal)
        #expect(try target.isTracked())
        try tracker.detach()
        #expect(target.userfaultfds == [])
        #expect(target.isWell())
    }

    /// The switch of the kernel's is open for the moment of the call only.
    @Test func aProcessWithoutPrivilegesIsEntered() throws {
        let before = Sysctl.unprivilegedFaults.isOn
        let target = try WriteTarget(user: 65534)
        let tracker = try WriteTracker.attach(pid: target.pid, areas: target.areas, journal: target.journal)
        #expect(Sysctl.unprivilegedFaults.isOn == before)
        #expect(try target.isTracked())
        try tracker.detach()
        #expect(target.userfaultfds == [])
        #expect(target.isWell())
    }

    @Test(.timeLimit(.minutes(1))) func noSignalIsLost() throws {
        let target = try WriteTarget()
        try target.startSignals()
        for _ in 0..<20 {
            let tracker = try WriteTracker.attach(pid: target.pid, areas: target.areas, journal: target.journal)
            try tracker.detach()
        }
        let (sent, handled) = try target.endSignals()
        #expect(sent > 20)
        #expect(handled == sent)
        #expect(target.isWell())
    }

    /// The tracer is killed at any point of its work, 200 times; the sleeper must never see a result that is not its own.
    @Test(.timeLimit(.minutes(2))) func killedInTheMiddle() async throws {
        let target = try WriteTarget()
        let gadgets = try Gadgets.find(in: target.pid)
        let sleeper = try #require(WriteTarget.sleeper(of: target.pid))
        for round in 0..<200 {
            let tracer = try WriteTarget.start(
                "restless-tracer", ["\(sleeper)", String(gadgets.call, radix: 16), String(gadgets.leave, radix: 16)],
                log: target.log)
            pause(ms: 3 + Double(round % 10) * 0.13)
            #expect(tracer.exit == nil, "the tracer must be at work")
            try tracer.signal(SIGKILL)
            await withCheckedContinuation { ended in tracer.onExit { _ in ended.resume() } }
            try #require(target.isWell(), "round \(round)")
        }
        // The thread can still be borrowed.
        let tracker = try WriteTracker.attach(pid: target.pid, areas: target.areas, journal: target.journal)
        let left = target.userfaultfds.count - 1
        // Some kills came between the tracer's two calls, or this test shows nothing.
        #expect(left > 0)
        try tracker.detach()
        #expect(target.userfaultfds.count == left)
        #expect(target.isWell())
    }
}
