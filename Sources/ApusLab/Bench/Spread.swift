/// Median and range of a measurement over several runs.
public struct Spread: Sendable, Equatable {
    public let median: Double
    public let least: Double
    public let most: Double
    public let count: Int

    /// - Returns: nil for no values.
    public init?(_ values: [Double]) {
        let sorted = values.sorted()
        guard let first = sorted.first, let last = sorted.last else { return nil }
        let middle = sorted.count / 2
        median = sorted.count % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
        least = first
        most = last
        count = sorted.count
    }

    /// `3.21 (3.10-3.40)`: median and range; of one value only that.
    public var text: String { count > 1 ? "\(brief(median)) (\(brief(least))-\(brief(most)))" : brief(median) }
}

/// A number for people: three significant digits, no exponent.
public func brief(_ value: Double) -> String {
    let size = value.magnitude
    let digits = size >= 100 ? 0 : size >= 10 ? 1 : 2
    var scale = 1.0
    for _ in 0..<digits { scale *= 10 }
    let rounded = (value * scale).rounded() / scale
    if digits == 0 { return "\(Int(rounded))" }
    let parts = "\(rounded)".split(separator: ".")
    let decimals = parts.count > 1 ? parts[1].prefix(digits) : ""
    return "\(parts[0]).\(decimals)" + String(repeating: "0", count: digits - decimals.count)
}
