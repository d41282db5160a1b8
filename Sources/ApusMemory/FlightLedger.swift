internal import ApusSystem

/// The pages in the frames that a lane has sent and that are not confirmed: after a lost connection these, and only
/// these, have to be sent again.
///
/// ```
///   frame      ... 41 | 42  43  44  45 |          sent 45, confirmed 41
///   runs       ......|[..][....][.][..]|......    two rings: runs per frame, and the runs
/// ```
public struct FlightLedger: ~Copyable, Sendable {
    private static let runBytes = 8
    /// Runs of the longest frame.
    private static let frameRunsMax = max(Limits.batchRecords, Limits.updatePages)

    /// Frames since the lane's start.
    public private(set) var sent: UInt64 = 0
    public private(set) var confirmed: UInt64 = 0
    private var runs = PageBuffer(byteCount: Limits.runsInFlight * FlightLedger.runBytes)
    private var runsIn: UInt64 = 0
    private var runsOut: UInt64 = 0
    private var counts = InlineArray<256, UInt16>(repeating: 0)

    public init() { precondition(Limits.batchesInFlight == 256) }

    /// False when a frame more might not fit: wait for credit.
    public var hasRoom: Bool {
        sent - confirmed < UInt64(Limits.batchesInFlight)
            && runsIn - runsOut + UInt64(Self.frameRunsMax) <= UInt64(Limits.runsInFlight)
    }

    /// A new frame; its runs follow with ``add(first:count:)``. ``hasRoom`` must be true.
    public mutating func begin() {
        precondition(hasRoom)
        counts[Int(sent % UInt64(Limits.batchesInFlight))] = 0
        sent += 1
    }

    /// A run of the newest frame.
    @inline(__always)
    public mutating func add(first: PageNumber, count: Int) {
        runs.store(UInt64(first) | UInt64(count) << 32, at: Self.offset(runsIn))
        runsIn += 1
        counts[Int((sent - 1) % UInt64(Limits.batchesInFlight))] += 1
    }

    /// The receiver has applied all frames up to this one. False, and nothing changes, when it cannot have.
    public mutating func confirm(upTo frame: UInt64) -> Bool {
        guard frame >= confirmed, frame <= sent else { return false }
        while confirmed < frame {
            runsOut += UInt64(counts[Int(confirmed % UInt64(Limits.batchesInFlight))])
            confirmed += 1
        }
        return true
    }

    /// Takes one unconfirmed run out, in any order; nil when none is left.
    ///
    /// After a lost connection: first ``confirm(upTo:)`` what the receiver says it has applied, then take all. The frames
    /// that never arrived then count as never sent: both ends go on from the same number.
    public mutating func takeUnconfirmed() -> (first: PageNumber, count: Int)? {
        guard runsOut < runsIn else {
            sent = confirmed
            return nil
        }
        let word = runs.bytes.littleEndian(at: Self.offset(runsOut), as: UInt64.self)
        runsOut += 1
        return (PageNumber(truncatingIfNeeded: word), Int(word >> 32))
    }

    private static func offset(_ run: UInt64) -> Int { Int(run % UInt64(Limits.runsInFlight)) * runBytes }
}
