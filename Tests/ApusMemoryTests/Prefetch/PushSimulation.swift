import ApusMemory

/// A guest that touches pages at known times, and a source that pushes them over a link in some order.
struct PushSimulation {
    struct Touch {
        var ms: Double
        var page: PageNumber
    }

    var pageCount: PageNumber
    /// Pages that the guest has; nil: all.
    var data: PageSet?
    /// What was used at the source, until it stopped.
    var before = AccessRecord()
    /// From its first moment at the destination.
    var after: [Touch]
    /// 1 Gb/s.
    var pagesPerMs = 28.0
    /// From the source's choice to the page's being there.
    var wayMs = 0.5

    /// The least that any order leaves: it is known what will be touched, and when, and what would come too late is left out.
    var oracle: Int {
        var seen: Set<PageNumber> = []
        var sent = 0.0
        return after.count { touch in
            guard seen.insert(touch.page).inserted else { return false }
            guard sent / pagesPerMs + wayMs <= touch.ms else { return true }
            sent += 1
            return false
        }
    }

    /// Touches of pages that had not come.
    func faults(_ prefetch: Prefetch) -> Int {
        var due = data ?? PageSet(pageCount: pageCount)
        if data == nil { due.insert(first: 0, count: Int(pageCount)) }
        var order = PushOrder(due, prefetch, record: before)
        var arrival = [Double](repeating: .infinity, count: Int(pageCount))
        var sent = 0.0
        var faults = 0
        for touch in after {
            while sent < touch.ms * pagesPerMs, let run = order.next(ms: sent / pagesPerMs, limit: 8) {
                for page in run.first..<run.first + PageNumber(run.count) {
                    arrival[Int(page)] = sent / pagesPerMs + wayMs
                    sent += 1
                }
            }
            if arrival[Int(touch.page)] > touch.ms {
                faults += 1
                arrival[Int(touch.page)] = touch.ms
                order.touched(touch.page, ms: touch.ms)
            }
        }
        return faults
    }

    /// As a recorder sees the same touches: by epochs of 5 ms, each page once.
    static func record(_ touches: [Touch], epochMs: Double = 5) -> AccessRecord {
        var record = AccessRecord()
        var seen: Set<PageNumber> = []
        var index = 0
        var end = epochMs
        while index < touches.count {
            var epoch: Set<PageNumber> = []
            while index < touches.count, touches[index].ms < end {
                if seen.insert(touches[index].page).inserted { epoch.insert(touches[index].page) }
                index += 1
            }
            record.add(epoch.sorted().map { ($0, 1) }, ms: Float(end))
            end += epochMs
        }
        return record
    }
}

/// Programs whose next page is known.
enum Walk {
    /// 8 touches a millisecond of one program after the other.
    static func touches(ms: Double, _ page: (_ visit: Int) -> Int) -> [PushSimulation.Touch] {
        (0..<Int(ms * 8)).map { .init(ms: Double($0) / 8, page: PageNumber(page($0))) }
    }

    /// The first `beforeMs` happen at the source.
    static func simulation(pages: Int, beforeMs: Double = 300, _ page: @escaping (Int) -> Int) -> PushSimulation {
        let all = touches(ms: beforeMs + 1000, page)
        let split = Int(beforeMs * 8)
        let after = all[split...].map { PushSimulation.Touch(ms: $0.ms - beforeMs, page: $0.page) }
        return PushSimulation(
            pageCount: PageNumber(pages), before: PushSimulation.record(Array(all[..<split])), after: after)
    }
}
