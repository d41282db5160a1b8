public import ApusMemory
internal import ApusSystem

/// Checks update frames from a peer that may be hostile, and applies them. One per lane.
public struct UpdateDecoder: ~Copyable, Sendable {
    public struct Counts: Sendable, Equatable {
        public var pages = 0
        public var lines = 0
    }

    private struct Head {
        var entries: Int
        var codec: Codec
        var restarts: Bool
        var lineBytes: Int
        var squeezedBytes: Int
        var bodyAt: Int { UpdatePayload.headBytes + entries * UpdatePayload.entryBytes }
    }

    private struct Entry {
        var page: PageNumber
        var mask: UInt32
        var base: UInt8
    }

    private let layout: Layout
    private var expander = BodyExpander()
    private var scratch = PageBuffer(byteCount: Limits.updateBytesMax)

    public init(layout: Layout) { self.layout = layout }

    /// Applies one payload, and counts it in `replica`. Nothing is written unless all of it is right.
    public mutating func decode<I: PageInstaller & ~Copyable>(
        _ payload: RawSpan, _ replica: inout ReplicaMap, into installer: inout I
    ) throws(PayloadError) -> Counts {
        let head = try Self.head(payload)
        let counts = try check(payload, head, replica, installer.patchable)
        let lineBytes = counts.lines * head.lineBytes
        guard lineBytes <= Limits.updateBytesMax, head.squeezedBytes <= UpdatePayload.squeezedBytesMax else {
            throw .length(want: Limits.updateBytesMax, got: max(lineBytes, head.squeezedBytes))
        }
        let bodyBytes = head.codec == .none ? lineBytes : head.squeezedBytes
        guard payload.byteCount == head.bodyAt + bodyBytes else {
            throw .length(want: head.bodyAt + bodyBytes, got: payload.byteCount)
        }
        let body = payload.extracting(head.bodyAt...)
        guard head.codec != .none else {
            try Self.apply(payload, head, lines: body, &replica, &installer)
            return counts
        }
        try expander.expand(body, head.codec, into: &scratch, byteCount: lineBytes, restart: head.restarts)
        try Self.apply(payload, head, lines: scratch.bytes, &replica, &installer)
        return counts
    }

    private static func head(_ payload: RawSpan) throws(PayloadError) -> Head {
        guard payload.byteCount >= UpdatePayload.headBytes else {
            throw .short(want: UpdatePayload.headBytes, got: payload.byteCount)
        }
        let entries = Int(payload.littleEndian(at: 0, as: UInt16.self))
        guard entries > 0, entries <= Limits.updatePages else { throw .tooManyRecords(entries) }
        guard let codec = Codec(rawValue: payload.byte(at: 2)) else { throw .unknownCodec(payload.byte(at: 2)) }
        let flags = payload.byte(at: 3)
        guard flags & ~BatchPayload.restartFlag == 0 else { throw .unknownFlags(flags) }
        let shift = payload.byte(at: 4)
        guard shift < 16, 1 << shift >= Limits.lineBytesMin, 1 << shift <= Limits.lineBytesMax else {
            throw .lineBytes(shift: shift)
        }
        let reserved = payload.littleEndian(at: 4, as: UInt32.self) >> 8
        guard reserved == 0 else { throw .unknownFlags(UInt8(truncatingIfNeeded: reserved)) }
        let squeezed = Int(payload.littleEndian(at: 8, as: UInt32.self))
        guard codec != .none || squeezed == 0 else { throw .corruptBody(.none) }
        let head = Head(
            entries: entries, codec: codec, restarts: flags & BatchPayload.restartFlag != 0, lineBytes: 1 << shift,
            squeezedBytes: squeezed)
        guard payload.byteCount >= head.bodyAt else { throw .short(want: head.bodyAt, got: payload.byteCount) }
        return head
    }

    private static func entry(_ payload: RawSpan, _ index: Int) -> Entry {
        let at = UpdatePayload.headBytes + index * UpdatePayload.entryBytes
        return Entry(
            page: payload.littleEndian(at: at), mask: payload.littleEndian(at: at + 4), base: payload.byte(at: at + 8))
    }

    private func check(
        _ payload: RawSpan, _ head: Head, _ replica: borrowing ReplicaMap, _ patchable: PageRanges
    ) throws(PayloadError) -> Counts {
        var counts = Counts()
        var next: UInt64 = 0
        let lines = Limits.pageBytes / head.lineBytes
        for index in 0..<head.entries {
            let entry = Self.entry(payload, index)
            guard UInt64(entry.page) >= next else { throw .notAscending(page: entry.page) }
            next = UInt64(entry.page) + 1
            guard entry.page < layout.pageCount else { throw .outsideMemory(page: next) }
            guard replica.share.owns(entry.page) else { throw .wrongLane(page: entry.page) }
            guard entry.mask != 0 else { throw .emptyUpdate(page: entry.page) }
            guard UInt64(entry.mask) >> UInt64(lines) == 0 else {
                throw .outsidePage(page: entry.page, mask: entry.mask)
            }
            guard patchable.contains(entry.page) else { throw .notPatchable(page: entry.page) }
            let own = replica.base(of: entry.page)
            guard own != ReplicaMap.absent, own < ReplicaMap.basesMax, entry.base == own else {
                throw .stale(page: entry.page, base: entry.base, own: own)
            }
            counts.lines += entry.mask.nonzeroBitCount
        }
        counts.pages = head.entries
        return counts
    }

    private static func apply<I: PageInstaller & ~Copyable>(
        _ payload: RawSpan, _ head: Head, lines: RawSpan, _ replica: inout ReplicaMap, _ installer: inout I
    ) throws(PayloadError) {
        var at = 0
        for index in 0..<head.entries {
            let entry = entry(payload, index)
            let count = entry.mask.nonzeroBitCount * head.lineBytes
            try installer.patch(
                entry.page, mask: entry.mask, lineBytes: head.lineBytes, lines.extracting(at..<at + count))
            replica.setUpdated(entry.page)
            at += count
        }
    }
}
