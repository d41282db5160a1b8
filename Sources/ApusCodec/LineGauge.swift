public import ApusMemory

/// Tells whether hashing pages pays: what a hash costs, against the link's time that pages sent again have saved by it.
/// A pure value: time comes in as numbers.
///
/// ```
///   off when  saved bytes per page sent again / link bytes per ns  <      ns to hash a page
///   on  when                                                       > 2 x
/// ```
/// While it is off one stripe of pages in sixteen is hashed all the same; what happens to them tells when it pays again.
/// Pages sent without a hash are forgotten, so there is nothing that could be wrong when it does.
public struct LineGauge: Sendable {
    /// One stripe in so many is always looked at.
    public static let sampleStripes = 16
    /// Pages after which half of what was learnt is new.
    private static let memoryPages = 512.0

    public private(set) var isOn = true
    // Before anything was measured: half a page saved, and what a slow core needs.
    private var savedBytes = 2048.0
    private var hashNs = 400.0

    public init() {}

    /// True for pages that are to be hashed.
    @inline(__always)
    public func tracks(_ page: PageNumber, _ share: LaneShare) -> Bool {
        isOn || share.index(of: page) / LaneShare.stripePages % Self.sampleStripes == 0
    }

    /// Pages were hashed in so many nanoseconds of CPU time; `again` of them had been sent before, and sending only what
    /// changed has saved `bytes`.
    public mutating func learn(pages: Int, ns: UInt64, again: Int, savedBytes bytes: Int) {
        if pages > 0 { hashNs += (Double(ns) / Double(pages) - hashNs) * Self.weight(pages) }
        if again > 0 { savedBytes += (Double(bytes) / Double(again) - savedBytes) * Self.weight(again) }
    }

    /// Decides for the next batch, given this lane's share of the link.
    public mutating func decide(linkBytesPerNs: Double) {
        let savedNs = savedBytes / max(linkBytesPerNs, 1e-6)
        isOn = savedNs > (isOn ? hashNs : 2 * hashNs)
    }

    private static func weight(_ pages: Int) -> Double { Double(pages) / (Double(pages) + memoryPages) }
}
