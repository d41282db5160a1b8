/// Tells from touches which pages will be touched next. Programs that walk at the same time are told apart by where they are.
///
/// A pure value: touches and the time in, pages out. After PDoPMP (Shan, Qiao, Lin) and Leap's majority trend.
public struct AccessPredictor: Sendable {
    /// Walks that are followed at a time; of those that are not foreseen to go on the one that stood still longest makes room.
    public static let streamsMax = 32
    private var streams: [PageStream] = []
    private let pageCount: PageNumber
    /// Of a record: where walks have been.
    public private(set) var walked: PageSet

    public init(pageCount: PageNumber) {
        self.pageCount = pageCount
        walked = PageSet(pageCount: pageCount)
    }

    /// What was recorded before, as if it had ended at `endMs`.
    public init(pageCount: PageNumber, _ record: AccessRecord, endMs: Double) {
        self.init(pageCount: pageCount)
        let shift = endMs - Double(record.lengthMs)
        var epoch: [AccessRecord.Run] = []
        var unseen = PageSet(pageCount: pageCount)
        unseen.insert(first: 0, count: Int(pageCount))
        for run in record.runs {
            if let other = epoch.last, other.ms != run.ms { follow(&epoch, shift, &unseen) }
            epoch.append(run)
        }
        follow(&epoch, shift, &unseen)
        streams.removeAll { endMs - $0.lastMs > Self.aliveMs }
    }

    /// A walk that has not been seen for so long before the end of the record is over.
    static let aliveMs = 50.0

    /// Within an epoch only places are known. What lies closely together is one walk, and begins at the end next to a walk
    /// that is known.
    private mutating func follow(
        _ epoch: inout [AccessRecord.Run], _ shift: Double, _ unseen: inout PageSet
    ) {
        for run in epoch { unseen.remove(first: run.first, count: Int(run.count)) }
        var from = 0
        while from < epoch.count {
            var to = from + 1
            while to < epoch.count,
                Int(epoch[to].first) - Int(epoch[to - 1].first) - Int(epoch[to - 1].count) < PageStream.gapMax
            {
                to += 1
            }
            let low = epoch[from].first
            let high = epoch[to - 1].first + PageNumber(epoch[to - 1].count) - 1
            let ms = Double(epoch[from].ms) + shift
            let isDown = distance(to: high, ms) < distance(to: low, ms)
            for index in from..<to {
                let run = epoch[isDown ? to - 1 - (index - from) : index]
                for page in 0..<run.count {
                    let page = run.first + (isDown ? run.count - 1 - page : page)
                    let index = place(page, ms: ms, missing: unseen)
                    if streams[index].isWalk { walked.insert(first: page, count: 1) }
                }
            }
            from = to
        }
        epoch.removeAll(keepingCapacity: true)
    }

    private func distance(to page: PageNumber, _ ms: Double) -> Int {
        streams.reduce(Int.max) { min($0, abs(Int($1.last) - Int(page))) }
    }

    /// - Parameter missing: pages whose touch would have been told.
    /// - Returns: the touch follows a trend that is known.
    @discardableResult
    public mutating func touched(_ page: PageNumber, ms: Double, missing: PageSet) -> Bool {
        guard page < pageCount else { return false }
        let index = place(page, ms: ms, missing: missing)
        return streams[index].trend?.kind == .stride
    }

    /// - Returns: the stream that the touch is of.
    private mutating func place(_ page: PageNumber, ms: Double, missing: PageSet) -> Int {
        var best: (index: Int, distance: Int)?
        for index in streams.indices {
            guard let distance = streams[index].distance(to: page, ms: ms), distance < best?.distance ?? .max else {
                continue
            }
            best = (index, distance)
        }
        guard let index = best?.index else {
            if streams.count == Self.streamsMax { makeRoom() }
            streams.append(PageStream(at: page, ms: ms))
            return streams.count - 1
        }
        streams[index].touch(page, ms: ms, missing: missing)
        return index
    }

    /// A walk whose pages come in time is not seen, and must not make room for touches here and there.
    private mutating func makeRoom() {
        let least = streams.indices.min {
            let (left, right) = (streams[$0], streams[$1])
            return left.goesOn == right.goesOn ? left.lastMs < right.lastMs : right.goesOn
        }
        if let least { streams.remove(at: least) }
    }

    /// Pages at equal distances.
    public struct Walk: Equatable, Sendable {
        public var first: PageNumber
        /// Pages from one to the next.
        public var stride: Int
        public var count: Int
    }

    /// What is most likely to be touched next and was not given yet: of each walk by how sure it is and how near; nil:
    /// nothing more is likely for now. Ascending, `limit` pages at most.
    public mutating func next(ms: Double, limit: Int) -> Walk? {
        while true {
            var best: (index: Int, score: Double)?
            for index in streams.indices {
                guard let trend = streams[index].trend, let lead = streams[index].lead(ms: ms) else { continue }
                let score = trend.confidence / lead
                if score > best?.score ?? 0 { best = (index, score) }
            }
            guard let index = best?.index else { return nil }
            if let walk = streams[index].take(limit, below: pageCount) { return walk }
        }
    }
}
