import ApusMemory
import Testing

/// References that are answered at any time, and newer content that overtakes them.
@Suite struct AwaitedPagesTests {
    /// What the receiver does wrong.
    enum Sabotage: CaseIterable { case none, newerIsIgnored, refusalsAreForgotten, unansweredAreForgotten }

    private enum Frame {
        case literal(page: Int, version: Int)
        case reference(number: UInt32, pages: [Int], versions: [Int])
        case fence
    }

    /// A source, a link that keeps its order, a storage that answers when it likes, rightly or not, and the guest that writes
    /// all the while. At the fence every page must have its newest version.
    private func stalePages(seed: Int, _ sabotage: Sabotage) -> Int {
        var random = Seeded(UInt64(seed))
        func chance(_ perCent: Int) -> Bool { Int.random(in: 0..<100, using: &random) < perCent }
        let pageCount = 200
        var guest = [Int](repeating: 0, count: pageCount)
        var installed = [Int](repeating: -1, count: pageCount)
        var dirty = Set(0..<pageCount)
        var link: [Frame] = []
        var answers: [(number: UInt32, refused: [Int])] = []
        var reading: [(number: UInt32, versions: [Int])] = []
        var unanswered: [UInt32: [Int]] = [:]
        var awaited = AwaitedPages(pageCount: PageNumber(pageCount))
        var number: UInt32 = 0

        func sendSome() {
            let pages = dirty.sorted().filter { _ in chance(40) }.prefix(64)
            dirty.subtract(pages)
            let refers = Array(pages.filter { _ in chance(50) })
            for page in pages where !refers.contains(page) { link.append(.literal(page: page, version: guest[page])) }
            guard !refers.isEmpty else { return }
            number += 1
            unanswered[number] = refers
            link.append(.reference(number: number, pages: refers, versions: refers.map { guest[$0] }))
        }
        func resend(_ pages: [Int]) { for page in pages { link.append(.literal(page: page, version: guest[page])) } }
        func receive() {
            guard !link.isEmpty else { return }
            switch link.removeFirst() {
            case .literal(let page, let version):
                if sabotage != .newerIsIgnored { awaited.supersede(first: PageNumber(page), count: 1) }
                installed[page] = version
            case .reference(let number, let pages, let versions):
                awaited.begin(number)
                for page in pages { awaited.add(PageNumber(page)) }
                reading.append((number, versions))
            case .fence: break
            }
        }
        func read() {
            guard !reading.isEmpty else { return }
            let (number, versions) = reading.remove(at: Int.random(in: 0..<reading.count, using: &random))
            guard let frame = awaited.take(number) else { return }
            var refused: [Int] = []
            for place in 0..<frame.count where frame.wanted & (1 << UInt64(place)) != 0 {
                if chance(70) {
                    installed[Int(frame.pages[place])] = versions[place]
                } else {
                    refused.append(Int(frame.pages[place]))
                }
            }
            answers.append((number, refused))
        }
        func hear() {
            guard !answers.isEmpty else { return }
            let answer = answers.removeFirst()
            guard unanswered.removeValue(forKey: answer.number) != nil else { return }
            if sabotage != .refusalsAreForgotten { resend(answer.refused) }
        }

        for _ in 0..<600 {
            switch Int.random(in: 0..<6, using: &random) {
            case 0:
                let page = Int.random(in: 0..<pageCount, using: &random)
                guest[page] += 1
                dirty.insert(page)
            case 1: sendSome()
            case 2: read()
            case 3: hear()
            default: receive()
            }
        }
        // The guest is stopped.
        while !dirty.isEmpty { sendSome() }
        for _ in 0..<Int.random(in: 0..<40, using: &random) {
            receive()
            read()
            hear()
        }
        if sabotage != .unansweredAreForgotten { for pages in unanswered.values { resend(pages) } }
        unanswered = [:]
        link.append(.fence)
        while !link.isEmpty { receive() }
        // A disk that answers long after, while the guest runs already.
        let atFence = installed
        #expect(sabotage != .none || awaited.wantedCount == 0)
        while !reading.isEmpty { read() }
        #expect(sabotage != .none || installed == atFence)
        return (0..<pageCount).count { installed[$0] != guest[$0] }
    }

    @Test(arguments: 0..<40) func theNewestVersionIsThereAtTheFence(seed: Int) {
        #expect(stalePages(seed: seed, .none) == 0)
    }

    @Test(arguments: Sabotage.allCases.filter { $0 != .none }) func whatIsDoneWrongShows(_ sabotage: Sabotage) {
        #expect((0..<40).contains { stalePages(seed: $0, sabotage) > 0 })
    }

    @Test func longRunsOvertakeToo() {
        var awaited = AwaitedPages(pageCount: 100_000)
        awaited.begin(1)
        for page in [5, 700, 65_000, 99_999] { awaited.add(PageNumber(page)) }
        awaited.supersede(first: 6, count: 65_000)
        #expect(awaited.wantedCount == 2)
        #expect(awaited.take(1)?.wanted == 0b1001)
        #expect(awaited.take(1)?.number == nil)
        #expect(awaited.wantedCount == 0)
    }

    @Test func aDroppedFrameIsNobodys() {
        var awaited = AwaitedPages(pageCount: 1000)
        awaited.begin(1)
        awaited.add(7)
        awaited.begin(2)
        awaited.add(7)
        #expect(awaited.wantedCount == 1)
        awaited.dropAll()
        #expect(awaited.wantedCount == 0 && !awaited.hasFrames)
        #expect(awaited.take(2)?.number == nil)
    }
}
