import ApusLab
import Foundation
import Testing

@testable import ApusSystem

/// On the real kernel: needs root, ptrace and Linux 6.7.
@Suite(.serialized, .enabled(if: WriteTracker.hostLacks() == nil, "this host cannot enter processes"))
struct MemoryRebaseTests {
    @Test(.timeLimit(.minutes(1))) func theSameBytesAreInAFile() throws {
        let target = try WriteTarget()
        let file = try MemoryRebase.run(
            pid: target.pid, area: target.anonymous, journal: target.journal, stopGuest: { try target.standStill() },
            resumeGuest: {})
        let window = try GuestWindow(file, fileOffset: 0, byteCount: target.anonymous.byteCount)
        var its = Replica(target.anonymous, of: target.pid)
        try its.copyAll()
        #expect(its.differences(from: window) == 0)

        // It is one memory now: what the process writes is in the file, and the other way round.
        try target.goOn()
        pause(ms: 50)
        try target.standStill()
        #expect(try its.wrongPages() != [])
        try its.copyAll()
        #expect(its.differences(from: window) == 0)
        try target.write(at: 31 << 20)
        var page = PageBuffer(byteCount: 4096)
        window.copyOut(at: 31 << 20, byteCount: 4096, to: &page, bufferOffset: 0)
        #expect(page.bytes.littleEndian(at: 0, as: UInt64.self) == 31 << 20 + 1)

        // Of the way nothing is left but the file's descriptor.
        #expect(target.userfaultfds == [])
        #expect(try !target.isTracked())
        #expect(Foreign.unmappedMemoryFiles(of: target.pid) == [])
        #expect(!FileManager.default.fileExists(atPath: target.journal))
        #expect(try file.byteCount() == target.anonymous.byteCount)
        try target.goOn()
        #expect(target.isWell())
        // Once more: there is nothing to do, and the guest is left in peace.
        let again = try MemoryRebase.run(
            pid: target.pid, area: target.anonymous, journal: target.journal,
            stopGuest: { Issue.record("the guest was stopped") }, resumeGuest: {})
        #expect(
            try FileIdentity.of(path: "/proc/self/fd/\(again.number)")
                == FileIdentity.of(path: "/proc/self/fd/\(file.number)"))
        // And its writes can be tracked.
        let tracker = try WriteTracker.attach(pid: target.pid, areas: [target.anonymous], journal: target.journal)
        pause(ms: 20)
        #expect(try tracker.writtenBytes() > 0)
        try tracker.detach()
    }

    @Test func memoryNeverUsedStaysUnused() throws {
        let target = try WriteTarget()
        try target.standStill()
        // Half of it was filled, the writers have used some of the rest, on a busy machine all of it.
        for page: UInt64 in [0, 100, 8191] { try target.discard(at: page * 4096) }
        let file = try MemoryRebase.run(
            pid: target.pid, area: target.anonymous, journal: target.journal, stopGuest: {}, resumeGuest: {})
        let window = try GuestWindow(file, fileOffset: 0, byteCount: target.anonymous.byteCount)
        let used = try window.dataRanges().reduce(0) { $0 + UInt64($1.count) }
        #expect(used >= 15 << 20)
        #expect(used <= (32 << 20) - 3 * 4096)
    }

    /// Larger than a piece: stopped once for each, and after a failure in between the rest is done by the next attempt.
    @Test(.timeLimit(.minutes(2))) func piecesAreExchangedOneByOne() throws {
        let target = try WriteTarget(mib: 600)
        var stops = 0
        func rebase(failingAt failure: Int?) throws -> Descriptor {
            try MemoryRebase.run(
                pid: target.pid, area: target.anonymous, journal: target.journal,
                stopGuest: {
                    stops += 1
                    if stops == failure { throw Refusal() }
                    try target.standStill()
                }, resumeGuest: { try target.goOn() })
        }
        #expect(throws: Refusal.self) { _ = try rebase(failingAt: 2) }
        #expect(target.isWell())
        #expect(!FileManager.default.fileExists(atPath: target.journal))
        let file = try rebase(failingAt: nil)
        #expect(stops == 4)
        try target.standStill()
        let window = try GuestWindow(file, fileOffset: 0, byteCount: target.anonymous.byteCount)
        var its = Replica(target.anonymous, of: target.pid)
        try its.copyAll()
        #expect(its.differences(from: window) == 0)
        // One mapping again.
        let maps = try ProcFile.read("/proc/\(target.pid)/maps").split(separator: "\n")
        #expect(maps.filter { $0.contains(Foreign.memoryFilePrefix) }.count == 1)
        try target.goOn()
        #expect(target.isWell())
    }

    struct Refusal: Error {}

    @Test func aGuestThatCannotBeStoppedKeepsItsMemory() throws {
        let target = try WriteTarget()
        var resumed = 0
        #expect(throws: Refusal.self) {
            try MemoryRebase.run(
                pid: target.pid, area: target.anonymous, journal: target.journal, stopGuest: { throw Refusal() },
                resumeGuest: { resumed += 1 })
        }
        #expect(resumed == 1)
        try expectUntouched(target)
    }

    @Test func aThreadThatIsTracedKeepsTheMemoryAsItWas() throws {
        let target = try WriteTarget()
        let rebase = try MemoryRebase.begin(pid: target.pid, area: target.anonymous, journal: target.journal)
        #expect(try rebase.prepare())
        let debugged = try #require(try ProcFile.numbers(in: "/proc/\(target.pid)/task").last)
        let error = try Injector.onTracer { () throws(InjectionError) -> InjectionError? in
            let held = try StoppedThreads.stop([debugged], of: target.pid, pastSeccomp: false)
            do throws(InjectionError) {
                try rebase.exchange()
                return nil
            } catch {
                return held.count == 1 ? error : nil
            }
        }
        #expect(error == .alreadyTraced(pid: target.pid, by: getpid()))
        rebase.close()
        try expectUntouched(target)
    }

    @Test func aSuccessorTakesOutWhatWasPrepared() throws {
        let target = try WriteTarget()
        // Never closed: what an agent leaves that was killed.
        let rebase = try MemoryRebase.begin(pid: target.pid, area: target.anonymous, journal: target.journal)
        #expect(try rebase.prepare())
        #expect(Foreign.unmappedMemoryFiles(of: target.pid).count == 1)
        try WriteTracker.cleanUp(journal: target.journal)
        try expectUntouched(target)
    }

    @Test func sharedMemoryIsRefused() throws {
        let target = try WriteTarget()
        #expect(throws: InjectionError.unsuited("The guest's RAM is shared already")) {
            try MemoryRebase.begin(pid: target.pid, area: target.shared, journal: target.journal)
        }
        try expectUntouched(target)
    }

    private func expectUntouched(_ target: WriteTarget) throws {
        #expect(target.userfaultfds == [])
        #expect(try !target.isTracked())
        #expect(Foreign.unmappedMemoryFiles(of: target.pid) == [])
        #expect(!FileManager.default.fileExists(atPath: target.journal))
        #expect(try !ProcFile.read("/proc/\(target.pid)/maps").contains("memfd:apus-ram"))
        #expect(target.isWell())
    }
}
