import ApusLab
import Testing

@testable import ApusSystem

/// On the real kernel: needs root, ptrace and Linux 6.7.
@Suite(.serialized, .enabled(if: WriteTracker.hostLacks() == nil, "this host cannot enter processes"))
struct UseTests {
    private func used(_ tracker: WriteTracker) throws -> [UInt64] {
        var pages: [UInt64] = []
        try tracker.eachUsed { _, offset, byteCount in
            for page in 0..<byteCount / 4096 { pages.append(offset / 4096 + page) }
        }
        return pages
    }

    @Test func whatIsTouchedIsSeenAndNothingElse() throws {
        let target = try WriteTarget()
        try target.standStill()
        let tracker = try WriteTracker.attach(pid: target.pid, areas: [target.shared], journal: target.journal)
        #expect(try used(tracker).count > 100, "it has used nothing so far")
        var replica = Replica(target.shared, of: target.pid)
        try replica.copyAll()
        try tracker.forgetUse()
        #expect(try used(tracker) == [])
        // Its neighbours are in the page cache too, and stay out.
        let touched: [UInt64] = [3, 4, 700, 1999, 8191]
        for page in touched { try target.write(at: page * 4096) }
        #expect(try used(tracker) == touched)
        // What is out of the page tables is still in the file.
        #expect(try replica.wrongPages().count == touched.count)
        try tracker.detach()
        #expect(target.isWell() && target.userfaultfds == [])
    }

    /// Emptied tables do not tell what was written before; all that is written afterwards is told.
    @Test(.timeLimit(.minutes(2))) func noWriteIsMissedAfterwards() throws {
        let target = try WriteTarget()
        let tracker = try WriteTracker.attach(pid: target.pid, areas: [target.shared], journal: target.journal)
        for round in 0..<10 {
            try tracker.forgetUse()
            try tracker.takeWritten { _, _, _ in }
            var replica = Replica(target.shared, of: target.pid)
            try replica.copyAll()
            pause(ms: 20)
            try target.standStill()
            var runs: [(UInt64, UInt64)] = []
            try tracker.takeWritten { runs.append(($1, $2)) }
            for (offset, byteCount) in runs { try replica.copy(offset, byteCount) }
            #expect(try replica.wrongPages() == [], "round \(round)")
            try target.goOn()
        }
        try tracker.detach()
        #expect(target.isWell())
    }

    /// What was only read may travel before the guest moves, for a write to it is told afterwards.
    @Test func aWriteToWhatWasReadIsTold() throws {
        let target = try WriteTarget()
        try target.standStill()
        let tracker = try WriteTracker.attach(pid: target.pid, areas: [target.shared], journal: target.journal)
        try tracker.forgetUse()
        try tracker.takeWritten { _, _, _ in }
        let read: [UInt64] = [5, 6, 63, 64, 4000]
        for page in read { try target.read(at: page * 4096) }
        #expect(try used(tracker) == read)
        #expect(try written(tracker) == [])
        for page in read { try target.write(at: page * 4096) }
        #expect(try written(tracker) == read)
        try tracker.detach()
        #expect(target.isWell())
    }

    private func written(_ tracker: WriteTracker) throws -> [UInt64] {
        var pages: [UInt64] = []
        try tracker.eachWritten { _, offset, byteCount in
            for page in 0..<byteCount / 4096 { pages.append(offset / 4096 + page) }
        }
        return pages
    }

    @Test func privateMemoryIsLeftAlone() throws {
        let target = try WriteTarget()
        let tracker = try WriteTracker.attach(pid: target.pid, areas: target.areas, journal: target.journal)
        let refusal = #expect(throws: InjectionError.self) { try tracker.forgetUse() }
        guard case .unsuited? = refusal else {
            Issue.record("\(String(describing: refusal))")
            return
        }
        try tracker.detach()
        #expect(target.isWell())
    }

    @Test func aProcessThatHasGoneIsSaidToBe() async throws {
        let target = try WriteTarget()
        let tracker = try WriteTracker.attach(pid: target.pid, areas: [target.shared], journal: target.journal)
        await target.kill()
        #expect(throws: InjectionError.processGone(pid: target.pid)) { try tracker.forgetUse() }
        #expect(throws: SystemError.self) { try tracker.eachUsed { _, _, _ in } }
        try tracker.detach()
    }
}
