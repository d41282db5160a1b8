import CApus
import Foundation
import Testing

@testable import ApusSystem

/// On the real kernel: needs root, ptrace and userfaultfd.
@Suite(.serialized, .enabled(if: WriteTracker.hostLacks() == nil, "this host cannot enter processes"))
struct PagerTests {
    /// A process that stands still, with its first pages missing.
    private func makeTarget(pages: UInt64) throws -> (WriteTarget, Pager, GuestWindow) {
        let target = try WriteTarget()
        try target.standStill()
        let link = try #require(
            try ProcFile.numbers(in: "/proc/\(target.pid)/fd").first {
                ProcFile.link("/proc/\(target.pid)/fd/\($0)")?.hasPrefix("/memfd:write-target") == true
            })
        let file = try Descriptor.open("/proc/\(target.pid)/fd/\(link)", .readWrite)
        let window = try GuestWindow(file, fileOffset: 0, byteCount: target.shared.byteCount)
        let pager = try Pager.enter(pid: target.pid, areas: [target.shared], journal: target.journal)
        try pager.arm()
        try window.punch(at: 0, byteCount: pages * 4096)
        return (target, pager, window)
    }

    private func page(_ byte: UInt8) -> PageBuffer {
        var page = PageBuffer(byteCount: 4096)
        for word in 0..<512 { page.store(UInt64(byte) &* 0x0101_0101_0101_0101, at: word * 8) }
        return page
    }

    private func byte(_ window: GuestWindow, at offset: UInt64) throws -> UInt8 {
        var room = PageBuffer(byteCount: 4096)
        try window.read(at: offset, byteCount: 4096, to: &room, bufferOffset: 0)
        return room.bytes.byte(at: 4095)
    }

    /// Has the target write at an offset, which lasts until the page is there.
    private func touch(_ target: WriteTarget, at offset: UInt64) throws -> WorkerThread {
        try WorkerThread("touch") { try? target.write(at: offset) }
    }

    private func nextFault(_ pager: Pager) throws -> UInt64? {
        var found: UInt64?
        for _ in 0..<100 where found == nil {
            _ = try pager.takeFaults(waitMs: 20) { area, offset in
                #expect(area == 0)
                found = offset
            }
        }
        return found
    }

    @Test(.timeLimit(.minutes(1))) func whoTouchesAMissingPageWaitsForIt() throws {
        let (target, pager, window) = try makeTarget(pages: 64)
        let toucher = try touch(target, at: 5 * 4096)
        #expect(try nextFault(pager) == 5 * 4096)
        #expect(!toucher.join(ms: 100), "it must wait")
        try pager.fill(0, at: 5 * 4096, page(0xa5).bytes)
        toucher.join()
        #expect(try byte(window, at: 5 * 4096) == 0xa5)
        // The word that it wrote came after the page.
        let zero = try touch(target, at: 9 * 4096)
        #expect(try nextFault(pager) == 9 * 4096)
        try pager.fillZero(0, at: 9 * 4096, byteCount: 4096)
        zero.join()
        #expect(try byte(window, at: 9 * 4096) == 0)
        try pager.leave()
        #expect(target.userfaultfds == [])
        #expect(target.isWell())
    }

    /// The guest's own writes must survive a page that comes late, or twice.
    @Test(.timeLimit(.minutes(1))) func aPageThatIsThereIsNotOverwritten() throws {
        let (target, pager, window) = try makeTarget(pages: 8)
        try pager.fill(0, at: 2 * 4096, page(1).bytes)
        // In the middle of a longer run too.
        var run = PageBuffer(byteCount: 6 * 4096)
        for word in 0..<6 * 512 { run.store(0x0202_0202_0202_0202, at: word * 8) }
        try pager.fill(0, at: 0, run.bytes)
        try pager.fillZero(0, at: 0, byteCount: 8 * 4096)
        #expect(try (0..<8).map { try byte(window, at: $0 * 4096) } == [2, 2, 1, 2, 2, 2, 0, 0])
        try pager.leave()
        #expect(target.isWell())
    }

    /// Pages that only the file has got: nobody's are overwritten, whoever waits goes on, and what is used shows, page by page.
    @Test(.timeLimit(.minutes(1))) func whatIsUsedOfFilledFilesShows() throws {
        let (target, pager, window) = try makeTarget(pages: 64)
        let filler = try window.makeFiller()
        func used() throws -> [UInt64] {
            var pages: [UInt64] = []
            try pager.eachUsed { area, offset, byteCount in
                if area == 0 { pages += (offset / 4096..<(offset + byteCount) / 4096).filter { $0 < 64 } }
            }
            return pages
        }
        try pager.fill(0, at: 2 * 4096, page(1).bytes)
        var run = PageBuffer(byteCount: 32 * 4096)
        for word in 0..<32 * 512 { run.store(0x0202_0202_0202_0202, at: word * 8) }
        try filler.fill(at: 0, run.bytes, byteCount: run.byteCount)
        try filler.fill(at: 32 * 4096, nil, byteCount: 16 * 4096)
        #expect(try [0, 2, 31, 40].map { try byte(window, at: $0 * 4096) } == [2, 1, 2, 0])
        #expect(try used() == [2])
        // Whoever asks for a page too late is answered with zeros, or with the page once more: what the file has stays.
        try pager.fillZero(0, at: 30 * 4096, byteCount: 2 * 4096)
        try pager.fill(0, at: 40 * 4096, page(9).bytes)
        #expect(try [30, 31, 40].map { try byte(window, at: $0 * 4096) } == [2, 2, 0])
        #expect(try used() == [2])
        // No neighbour is taken for used.
        try target.read(at: 9 * 4096)
        try target.write(at: 40 * 4096)
        #expect(try used() == [2, 9, 40])

        let toucher = try touch(target, at: 50 * 4096)
        #expect(try nextFault(pager) == 50 * 4096)
        try filler.fill(at: 50 * 4096, page(7).bytes, byteCount: 4096)
        #expect(!toucher.join(ms: 50), "it sleeps until it is woken")
        pager.wake(0, at: 50 * 4096, byteCount: 4096)
        toucher.join()
        #expect(try byte(window, at: 50 * 4096) == 7)
        #expect(try used() == [2, 9, 40, 50])
        try pager.leave()
        #expect(target.userfaultfds == [])
        #expect(target.isWell())
    }

    /// Private memory is dropped within the process: what was there, and be it the page of zeros, is missing afterwards.
    @Test(.timeLimit(.minutes(1))) func privateMemoryIsEmptied() throws {
        let target = try WriteTarget()
        try target.standStill()
        let memory = ProcessWindow(
            pid: target.pid, address: target.anonymous.address, byteCount: target.anonymous.byteCount)
        func isZero(_ page: UInt64) throws -> Bool {
            var room = PageBuffer(byteCount: 4096)
            try memory.copyOut(at: page * 4096, byteCount: 4096, to: &room, bufferOffset: 0)
            return room.bytes.isAllZero
        }
        for page in 0..<8 as Range<UInt64> { try target.write(at: page * 4096) }
        try target.discard(at: 6 * 4096)
        #expect(try isZero(6), "reading it makes the page of zeros")
        let pager = try Pager.enter(pid: target.pid, areas: [target.anonymous], journal: target.journal)
        try pager.arm()
        func pages(_ first: UInt64, _ count: UInt64) -> Pager.Area {
            .init(address: target.anonymous.address + first * 4096, byteCount: count * 4096)
        }
        try pager.empty([pages(2, 3), pages(6, 1), pages(100, 2)])
        for page in [3, 6] as [UInt64] {
            let toucher = try touch(target, at: page * 4096)
            #expect(try nextFault(pager) == page * 4096)
            try pager.fillZero(0, at: page * 4096, byteCount: 4096)
            toucher.join()
        }
        // What was not named stays, and nobody waits for it.
        #expect(try !isZero(1) && !isZero(5))
        try target.write(at: 4096)
        try pager.fill(0, at: 2 * 4096, page(9).bytes)
        try pager.fill(0, at: 4 * 4096, page(9).bytes)
        try pager.leave()
        #expect(target.userfaultfds == [])
        #expect(target.isWell())
    }

    /// The agent is killed with a question in hand; its successor goes on.
    @Test(.timeLimit(.minutes(1))) func aSuccessorGoesOn() throws {
        let (target, first, window) = try makeTarget(pages: 64)
        let toucher = try touch(target, at: 4096)
        #expect(try nextFault(first) == 4096)
        #expect(throws: InjectionError.journalExists(path: target.journal)) {
            try Pager.enter(pid: target.pid, areas: [target.shared], journal: target.journal)
        }
        // Nothing of `first` is used from here on, as if it were dead.
        let second = try #require(try Pager.takeOver(journal: target.journal))
        #expect(try nextFault(second) == 4096, "it must ask again")
        try second.fill(0, at: 4096, page(7).bytes)
        toucher.join()
        #expect(try byte(window, at: 4096) == 7)
        try second.leave()
        #expect(target.userfaultfds == [])
        #expect(try Pager.takeOver(journal: target.journal) === nil)
        #expect(target.isWell())
        withExtendedLifetime(first) {}
    }

    @Test(.timeLimit(.minutes(1))) func aProcessThatHasGone() async throws {
        let (target, pager, _) = try makeTarget(pages: 64)
        await target.kill()
        #expect(throws: SystemError("UFFDIO_COPY", code: ESRCH)) { try pager.fill(0, at: 0, page(1).bytes) }
        #expect(throws: InjectionError.processGone(pid: target.pid)) { try Pager.takeOver(journal: target.journal) }
        try pager.leave()
        #expect(!FileManager.default.fileExists(atPath: target.journal))
    }

    @Test func wordsOutliveTheirMapping() throws {
        let path = NSTemporaryDirectory() + "apus-words-\(UUID().uuidString)"
        defer { try? FileManager.default.removeItem(atPath: path) }
        var words: WordFile? = try WordFile(path, wordCount: 1000)
        #expect(words?[999] == 0)
        words?[999] = 42
        words = nil
        #expect(try WordFile(path, wordCount: 1000)[999] == 42)
    }
}
