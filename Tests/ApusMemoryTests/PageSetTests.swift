import ApusMemory
import Testing

@Suite struct PageSetTests {
    private static let pageCount: PageNumber = 1000

    private func pages(of set: PageSet) -> Set<PageNumber> {
        var all: Set<PageNumber> = []
        set.forEachStripeRun { first, count in all.formUnion(first..<first + PageNumber(count)) }
        return all
    }

    @Test(arguments: 1...50 as ClosedRange<UInt64>) func isASet(seed: UInt64) {
        var random = Seeded(seed)
        var sets = [PageSet(pageCount: Self.pageCount), PageSet(pageCount: Self.pageCount)]
        var models: [Set<PageNumber>] = [[], []]
        for _ in 0..<40 {
            let which = Int.random(in: 0...1, using: &random)
            let first = PageNumber.random(in: 0..<Self.pageCount, using: &random)
            let count =
                Int.random(in: 0...Int(Self.pageCount - first), using: &random) / Int.random(in: 1...20, using: &random)
            let run = first..<first + PageNumber(count)
            switch Int.random(in: 0..<10, using: &random) {
            case 0:
                sets[which].formUnion(sets[1 - which])
                models[which].formUnion(models[1 - which])
            case 1:
                sets[which].subtract(sets[1 - which])
                models[which].subtract(models[1 - which])
            case 2...4:
                sets[which].remove(first: first, count: count)
                models[which].subtract(run)
            default:
                sets[which].insert(first: first, count: count)
                models[which].formUnion(run)
            }
            for (set, model) in zip(sets, models) {
                #expect(pages(of: set) == model)
                #expect(set.count == model.count)
            }
        }
    }
}
