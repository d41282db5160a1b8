import ApusMemory
import ApusSystem

/// The sending side of XBZRLE as QEMU has it: a cache of old pages and an encoder of differences. Only to compare with.
struct XbzrleSender: ~Copyable {
    /// QEMU's record of such a page: offset with flags, a flag, a length, the data.
    private static let headBytes = 8 + 1 + 2
    private static let wholeBytes = 8 + 4096
    /// Rounds for which QEMU keeps a page that others want to push out.
    private static let lifetimeRounds = 2

    private let slots: Int
    private var cache: PageBuffer
    private var owners: [PageNumber?]
    private var ages: [Int]
    private var round = 0

    init(cacheBytes: Int) {
        slots = cacheBytes / 4096
        cache = PageBuffer(byteCount: cacheBytes)
        owners = [PageNumber?](repeating: nil, count: slots)
        ages = [Int](repeating: 0, count: slots)
    }

    mutating func beginRound() { round += 1 }

    /// Bytes that QEMU would put on the link for this page.
    mutating func send(_ page: PageNumber, _ bytes: RawSpan) -> Int {
        let slot = Int(page) % slots
        guard owners[slot] == page else {
            if owners[slot] == nil || ages[slot] + Self.lifetimeRounds < round {
                owners[slot] = page
                ages[slot] = round
                cache.write(bytes, at: slot * 4096)
            }
            return Self.wholeBytes
        }
        ages[slot] = round
        let length = Self.encodedBytes(cache.bytes.extracting(slot * 4096..<(slot + 1) * 4096), bytes)
        if length == 0 { return 0 }
        cache.write(bytes, at: slot * 4096)
        return length > 4096 ? Self.wholeBytes : Self.headBytes + length
    }

    /// Length of the runs; QEMU writes them too, which costs a little more.
    private static func encodedBytes(_ old: RawSpan, _ new: RawSpan) -> Int {
        var at = 0
        var length = 0
        while at < 4096 {
            let kept = run(old, new, from: at, equal: true)
            guard at + kept < 4096 else { return length }
            let changed = run(old, new, from: at + kept, equal: false)
            length += (kept < 128 ? 1 : 2) + (changed < 128 ? 1 : 2) + changed
            at += kept + changed
        }
        return length
    }

    private static func run(_ old: RawSpan, _ new: RawSpan, from: Int, equal: Bool) -> Int {
        var at = from
        if equal {
            while at + 8 <= 4096,
                old.littleEndian(at: at, as: UInt64.self) == new.littleEndian(at: at, as: UInt64.self)
            {
                at += 8
            }
        }
        while at < 4096, (old.byte(at: at) == new.byte(at: at)) == equal { at += 1 }
        return at - from
    }
}
