/// In which order pages that nobody has asked for yet are sent to a VM that runs at its destination already.
///
/// ```
///   faults      ......x.............y.......        newest first: a program goes on near where it was
///   order       y, y+1, y+2 …  then x, x+1 …        up to `reachPages` behind each
///   then        0, 1, 2, …                          what is left, from the beginning
/// ```
///
/// A pure value: faults in, runs of pages out, each page at most once.
public struct PushOrder: Sendable {
    /// How far behind a fault its neighbourhood goes.
    public static let reachPages = 1024
    /// Faults that are remembered.
    public static let pointsMax = 8

    private struct Point: Sendable {
        var next: PageNumber
        var end: PageNumber
    }

    private var due: PageSet
    /// Newest last.
    private var points: [Point] = []
    private var sweep: PageNumber = 0

    public init(_ due: PageSet) { self.due = due }

    /// Somebody waits for this page.
    public mutating func faulted(at page: PageNumber) {
        guard page < due.pageCount else { return }
        // A point that has come this far already is the same program, going on.
        if let index = points.firstIndex(where: { page >= $0.next &- 64 && page <= $0.next }) {
            points.remove(at: index)
        }
        if points.count == Self.pointsMax { points.removeFirst() }
        let end = min(UInt64(page) + UInt64(Self.reachPages), UInt64(due.pageCount))
        points.append(Point(next: page, end: PageNumber(end)))
    }

    /// These pages went another way.
    public mutating func remove(first: PageNumber, count: Int) { due.remove(first: first, count: count) }

    /// The next run, within one stripe of 64 pages, which is then no longer due; nil: nothing is.
    public mutating func next() -> (first: PageNumber, count: Int)? {
        while let point = points.last {
            if let run = take(from: point.next, to: point.end) {
                points[points.count - 1].next = run.first + PageNumber(run.count)
                return run
            }
            points.removeLast()
        }
        guard let run = take(from: sweep, to: due.pageCount) else { return nil }
        sweep = run.first + PageNumber(run.count)
        return run
    }

    private mutating func take(from start: PageNumber, to end: PageNumber) -> (first: PageNumber, count: Int)? {
        guard let run = due.nextStripeRun(from: start, to: end) else { return nil }
        due.remove(first: run.first, count: run.count)
        return run
    }
}
