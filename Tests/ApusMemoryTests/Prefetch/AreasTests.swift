import Testing

@testable import ApusMemory

@Suite struct TouchedAreasTests {
    @Test func mostTouchedComesFirst() {
        var areas = TouchedAreas(pageCount: 200)
        for page: PageNumber in [130, 131, 70] { areas.touched(page) }
        #expect(areas.takeNext() == 128..<192)
        // Too late for it.
        areas.touched(130)
        #expect(areas.takeNext() == 64..<128)
        #expect(areas.takeNext() == 0..<64)
        areas.touched(199)
        #expect(areas.takeNext() == 192..<200)
        #expect(areas.takeNext() == nil)
    }

    @Test(arguments: [1, 64, 65_536, 65_537, 1_000_001] as [PageNumber]) func eachPageIsInOne(pageCount: PageNumber) {
        var areas = TouchedAreas(pageCount: pageCount)
        var next: PageNumber = 0
        var count = 0
        while let area = areas.takeNext() {
            #expect(area.lowerBound == next && next % 64 == 0)
            next = area.upperBound
            count += 1
        }
        #expect(next == pageCount && count <= TouchedAreas.countMax)
    }
}
