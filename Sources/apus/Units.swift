import Foundation

/// Numbers for people: three digits that matter, decimal units, the unit always there.
enum Units {
    static func bytes(_ count: UInt64) -> String { scaled(Double(count), ["B", "kB", "MB", "GB", "TB"]) }
    static func rate(_ perSecond: Double) -> String { scaled(perSecond, ["B/s", "kB/s", "MB/s", "GB/s"]) }

    /// Memory sizes, which are powers of two: whole MiB or GiB.
    static func memory(_ count: UInt64) -> String {
        if count >= 1 << 30, count % (1 << 30) == 0 { return "\(count >> 30) GiB" }
        return count % (1 << 20) == 0 ? "\(count >> 20) MiB" : "\(decimals(Double(count) / 1_048_576, 1)) MiB"
    }

    static func milliseconds(_ ms: Double) -> String {
        if ms < 100 { return "\(decimals(ms, 1)) ms" }
        if ms < 1000 { return "\(decimals(ms, 0)) ms" }
        return duration(ms)
    }

    /// `3.42 s`, `12.3 s`, `2 min 05 s`, `1 h 02 min`.
    static func duration(_ ms: Double) -> String {
        let seconds = ms / 1000
        if seconds < 9.995 { return "\(decimals(seconds, 2)) s" }
        if seconds < 59.95 { return "\(decimals(seconds, 1)) s" }
        let whole = Int(seconds.rounded())
        if whole < 3600 { return "\(whole / 60) min \(padded(whole % 60)) s" }
        return "\(whole / 3600) h \(padded(whole % 3600 / 60)) min"
    }

    /// Thousands apart: `1 234 567`.
    static func count(_ number: UInt64) -> String {
        var digits = Array(String(number))
        var index = digits.count - 3
        while index > 0 {
            digits.insert(" ", at: index)
            index -= 3
        }
        return String(digits)
    }

    static func decimals(_ value: Double, _ places: Int) -> String {
        guard value.isFinite else { return "?" }
        return value.formatted(
            .number.precision(.fractionLength(places)).grouping(.never).locale(Locale(identifier: "en_US_POSIX")))
    }

    private static func padded(_ number: Int) -> String { number < 10 ? "0\(number)" : "\(number)" }

    private static func scaled(_ value: Double, _ units: [String]) -> String {
        var value = max(0, value)
        var index = 0
        while value >= 999.5, index < units.count - 1 {
            value /= 1000
            index += 1
        }
        let places = index == 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2
        return "\(decimals(value, places)) \(units[index])"
    }
}
