internal import ApusMemory
internal import ApusSystem

extension Layout {
    /// Runs of pages that the blocks' files have, ascending. What is left out is a hole, and reads as zeros.
    ///
    /// - Parameter windows: one per block; nil: it is in no file, and left out.
    func dataRuns(_ windows: [GuestWindow?]) throws(SystemError) -> [(first: PageNumber, count: Int)] {
        let pageBytes = UInt64(Limits.pageBytes)
        var all: [(first: PageNumber, count: Int)] = []
        for (block, window) in zip(blocks, windows) {
            guard let window else { continue }
            for range in try window.dataRanges() {
                let first = range.lowerBound / pageBytes
                let end = min((range.upperBound + pageBytes - 1) / pageBytes, UInt64(block.pageCount))
                if first < end { all.append((block.firstPage + PageNumber(first), Int(end - first))) }
            }
        }
        return all
    }
}
