/// Where the touches of a program go, read off the steps between them.
///
/// ```
///   steps, newest last       …  8 -3  8  8  8  8        majority of the last 4, 8, 16 or 32: stride 8
///                            …  3  1  4  2  7  2        no majority, but nearly all go up: direction +1
///                            … -9 40 -3 22 -8  5        neither: no trend
/// ```
public struct Trend: Equatable, Sendable {
    public enum Kind: Equatable, Sendable {
        /// The same step again and again.
        case stride
        /// Different steps, nearly all of them up, or down.
        case direction
    }
    public let kind: Kind
    /// Pages from one touch to the next, never 0; of a direction 1 or -1.
    public let stride: Int
    /// 0 to 1.
    public let confidence: Double

    /// Steps that are looked at.
    public static let stepsMax = 32
    static let stepsMin = 4
    /// A direction needs more of them than a stride, for by chance it is there half of the time.
    static let directionStepsMin = 8
    static let directionShareMin = 0.75

    private init(_ kind: Kind, stride: Int, confidence: Double) {
        self.kind = kind
        self.stride = stride
        self.confidence = confidence
    }

    /// - Parameter steps: newest last, none of them 0.
    /// - Returns: nil: there is none.
    public static func of(_ steps: some RandomAccessCollection<Int>) -> Trend? {
        majority(steps) ?? direction(steps)
    }

    /// The shortest window that has one: what began a moment ago counts, whatever was before.
    static func majority(_ steps: some RandomAccessCollection<Int>) -> Trend? {
        var length = stepsMin
        while length <= min(steps.count, stepsMax) {
            let window = steps.suffix(length)
            var candidate = 0
            var votes = 0
            for step in window {
                if votes == 0 { candidate = step }
                votes += step == candidate ? 1 : -1
            }
            let count = window.count { $0 == candidate }
            if count * 2 > length {
                return Trend(.stride, stride: candidate, confidence: Double(count) / Double(length))
            }
            length *= 2
        }
        return nil
    }

    /// Up or down, by the median of the slopes between all pairs of touches (Theil-Sen), which a few wild ones do not move.
    static func direction(_ steps: some RandomAccessCollection<Int>) -> Trend? {
        let window = Array(steps.suffix(stepsMax / 2))
        guard window.count >= directionStepsMin else { return nil }
        let up = window.count { $0 > 0 }
        let share = Double(max(up, window.count - up)) / Double(window.count)
        guard share >= directionShareMin else { return nil }
        var slopes: [Double] = []
        for from in window.indices {
            var way = 0
            for to in from..<window.count {
                way += window[to]
                slopes.append(Double(way) / Double(to - from + 1))
            }
        }
        slopes.sort()
        let slope = slopes[slopes.count / 2]
        guard slope != 0, (slope > 0) == (up * 2 > window.count) else { return nil }
        return Trend(.direction, stride: slope > 0 ? 1 : -1, confidence: share - 0.5)
    }
}
