/// Where in memory touches are: programs use some of it much and some of it never.
struct TouchedAreas: Sendable {
    /// However large the VM.
    static let countMax = 1024
    private let pageCount: PageNumber
    /// Whole stripes of 64 pages.
    private let areaPages: PageNumber
    /// nil: has been given.
    private var touches: [Int?]

    init(pageCount: PageNumber) {
        self.pageCount = pageCount
        let stripes = (Int(pageCount) + 63) / 64
        let areaStripes = max(1, (stripes + Self.countMax - 1) / Self.countMax)
        areaPages = PageNumber(areaStripes * 64)
        touches = Array(repeating: 0, count: (stripes + areaStripes - 1) / areaStripes)
    }

    mutating func touched(_ page: PageNumber) { touches[Int(page / areaPages)]? += 1 }

    /// Gives each area once: of those left the one with most touches, of equal ones the lowest; nil: none is left.
    mutating func takeNext() -> Range<PageNumber>? {
        var best: (area: Int, touches: Int)?
        for (area, count) in touches.enumerated() {
            if let count, count > best?.touches ?? -1 { best = (area, count) }
        }
        guard let area = best?.area else { return nil }
        touches[area] = nil
        let first = area * Int(areaPages)
        return PageNumber(first)..<PageNumber(min(first + Int(areaPages), Int(pageCount)))
    }
}
