import Testing

@testable import ApusMemory

@Suite struct AccessRecordTests {
    /// Each page once, in the first set that has it; ascending within a set.
    @Test func dirtyRoundsAreARecord() {
        func set(_ pages: [PageNumber]) -> PageSet {
            pages.reduce(into: PageSet(pageCount: 256)) { $0.insert(first: $1, count: 1) }
        }
        let record = AccessRecord(written: [set([70, 5, 6]), set([6, 7, 200]), set([5, 9])])
        #expect(record.runs.map(\.first) == [5, 70, 7, 200, 9])
        #expect(record.runs.map(\.count) == [2, 1, 1, 1, 1] && record.pageCount == 6 && record.lengthMs == 0)
        #expect(AccessRecord(written: []) == AccessRecord())
    }
}
