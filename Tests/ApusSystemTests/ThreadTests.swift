import Glibc
import Testing

@testable import ApusSystem

@Suite struct ThreadTests {
    /// Policy and niceness, of the thread itself.
    private func scheduling(rank: Int32) throws -> (policy: Int, nice: Int) {
        let told = Monitor<String?>(nil)
        let thread = try WorkerThread("hurried", rank: rank) {
            told.update { $0 = try? ProcFile.read("/proc/thread-self/stat") }
        }
        thread.join()
        let stat = try #require(told.read { $0 })
        // Behind the name, which may hold anything, from the third word on.
        let words = try #require(stat.split(separator: ")").last).split(separator: " ")
        return (try #require(Int(words[41 - 3])), try #require(Int(words[19 - 3])))
    }

    @Test func whoIsWaitedForRunsFirst() throws {
        let plain = try scheduling(rank: 0)
        #expect(plain.policy == 0 && plain.nice == 0)
        let urgent = try scheduling(rank: WorkerThread.urgent)
        // Real time, or what stands for it; nothing where neither is allowed.
        #expect(urgent.policy == 2 || urgent.nice == -10 || geteuid() != 0, "\(urgent)")
    }
}
