import ApusFlow
import Foundation

/// What is remembered of a VM from its last migrations: the prior of the next one, and of `apus plan`.
struct VMHistory: Codable, Sendable, Equatable {
    /// How it wrote within one hour of the day.
    struct Hour: Codable, Sendable, Equatable {
        /// Different pages written within a second.
        var pagesPerS: Double
        var looks: Int
    }

    /// The curve of its writing, as it was seen last.
    var history = WorkingSetHistory()
    /// What a stop costs with nothing left to send, and what goes by before the first page; milliseconds.
    var fixedDowntimeMs: Double?
    var prepareMs: Double?
    /// Wire bytes of a page of the first pass, and of one that is sent again because it has changed.
    var firstBytesPerPage: Double?
    var againBytesPerPage: Double?
    /// Pages of the first pass.
    var dataPages: Double?
    /// By host: bytes per second that the link took.
    var links: [String: Double] = [:]
    /// By hour of the day, in the agent's time zone.
    var hours: [Int: Hour] = [:]

    private static let linksMax = 32
    /// How much the newest counts.
    private static let share = 0.5

    /// What it is expected to write at this hour. The curve keeps its form; its height is that of the hour, if it is known.
    func prior(atHour hour: Int) -> WorkingSetHistory {
        guard let known = hours[hour], let seen = history.curve?.dirtied(inMs: 1000), seen > 0 else {
            return history.asPrior()
        }
        return history.asPrior(times: min(max(known.pagesPerS / seen, 0.1), 10))
    }

    /// - Parameter newest: what was seen of its writing; too little is not learnt from.
    mutating func learn(_ newest: WorkingSetHistory, atHour hour: Int) {
        guard let curve = newest.curve, newest.looks.count >= 3 else { return }
        history = newest.asPrior()
        let pagesPerS = curve.dirtied(inMs: 1000)
        let before = hours[hour]
        hours[hour] = Hour(
            pagesPerS: before.map { Self.mixed($0.pagesPerS, pagesPerS) } ?? pagesPerS, looks: (before?.looks ?? 0) + 1)
    }

    mutating func learn(link bytesPerS: Double, to host: String) {
        guard bytesPerS > 0, links[host] != nil || links.count < Self.linksMax else { return }
        links[host] = bytesPerS
    }

    /// What a migration sent.
    struct Sent {
        var firstPages: UInt64
        var firstBytes: UInt64
        /// Of all rounds; among them pages that were found to be the same when they came again.
        var pages: UInt64
        var samePages: UInt64
        var wireBytes: UInt64
    }

    /// How many pages are found to be the same is a matter of the rounds' lengths: the forecast reckons it anew.
    mutating func learn(_ sent: Sent) {
        guard sent.firstPages > 0 else { return }
        Self.mix(&firstBytesPerPage, Double(sent.firstBytes) / Double(sent.firstPages))
        dataPages = Double(sent.firstPages)
        let again = Double(sent.pages) - Double(sent.firstPages) - Double(sent.samePages)
        guard again > Self.againPagesMin else { return }
        let bytes = Double(sent.wireBytes) - Double(sent.firstBytes) - SwitchGate.deviceBytes
        Self.mix(&againBytesPerPage, max(bytes, 0) / again)
    }
    /// Fewer pages say too little.
    private static let againPagesMin = 64.0

    /// One more value of something that varies little.
    static func mix(_ value: inout Double?, _ newest: Double?) {
        guard let newest, newest.isFinite, newest >= 0 else { return }
        value = value.map { mixed($0, newest) } ?? newest
    }
    private static func mixed(_ before: Double, _ newest: Double) -> Double { before + share * (newest - before) }

    static func hour(of date: Date) -> Int { Calendar.current.component(.hour, from: date) }

    /// What a migration would take that begins now; nil: too little is known.
    func forecast(to host: String, lanes: Int, maxDowntimeMs: Int, slowsDown: Bool, atHour hour: Int) -> Forecast? {
        guard let pages = dataPages, let first = firstBytesPerPage, let link = links[host],
            let curve = prior(atHour: hour).curve
        else { return nil }
        return Forecast.move(
            ForecastInput(
                pages: pages, firstBytesPerPage: first, againBytesPerPage: againBytesPerPage ?? first,
                linkBytesPerS: link, lanes: lanes, workingSet: curve, maxDowntimeMs: Double(maxDowntimeMs),
                fixedDowntimeMs: fixedDowntimeMs ?? SwitchGate.fixedMs, prepareMs: prepareMs ?? 0),
            slowsDown: slowsDown)
    }
}
