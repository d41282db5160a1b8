import ApusMemory
import ApusSystem
import Testing

@testable import ApusFlow

@Suite struct DataRunsTests {
    private func window(pages: Int, written: [Int]) throws -> GuestWindow {
        let byteCount = UInt64(pages * Limits.pageBytes)
        let window = try GuestWindow(
            try Descriptor.memoryFile(byteCount: byteCount), fileOffset: 0, byteCount: byteCount)
        let ones = [UInt8](repeating: 1, count: Limits.pageBytes)
        for page in written { window.install(ones.rawBytes, at: UInt64(page * Limits.pageBytes)) }
        return window
    }

    @Test func pagesThatWereWrittenAreFoundInAllBlocks() throws {
        let pageBytes = UInt64(Limits.pageBytes)
        let layout = try Layout([("a", 8 * pageBytes), ("hidden", 4 * pageBytes), ("b", 4 * pageBytes)])
        let runs = try layout.dataRuns([
            try window(pages: 8, written: [1, 2, 7]), nil, try window(pages: 4, written: [0, 3]),
        ])
        #expect(runs.map { "\($0.first)+\($0.count)" } == ["1+2", "7+1", "12+1", "15+1"])
    }

    @Test func aFileLargerThanItsBlockGivesNoMore() throws {
        let layout = try Layout([("a", UInt64(4 * Limits.pageBytes)), ("b", UInt64(4 * Limits.pageBytes))])
        let runs = try layout.dataRuns([try window(pages: 8, written: [2, 3, 4, 5, 7]), nil])
        #expect(runs.map { "\($0.first)+\($0.count)" } == ["2+2"])
    }
}
