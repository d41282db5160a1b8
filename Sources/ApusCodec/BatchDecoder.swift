public import ApusMemory
internal import ApusSystem

/// Where a receiving lane puts pages. Whole pages come in runs, never one by one.
public protocol PageInstaller: ~Copyable {
    /// Makes the pages read as zero.
    mutating func installZero(first: PageNumber, count: Int) throws(PayloadError)
    /// Installs whole pages; `bytes` is valid during the call only.
    mutating func install(first: PageNumber, _ bytes: RawSpan) throws(PayloadError)
    /// Overwrites the lines of a page that `mask` names, first line as the lowest bit; `bytes` holds just these lines.
    /// Called for pages that ``patchable`` contains.
    mutating func patch(
        _ page: PageNumber, mask: UInt32, lineBytes: Int, _ bytes: RawSpan
    ) throws(PayloadError)
    /// Pages of which a part can be changed.
    var patchable: PageRanges { get }
}

/// Checks and unpacks payloads from a peer that may be hostile. One per lane.
public struct BatchDecoder: ~Copyable, Sendable {
    public struct Counts: Sendable, Equatable {
        public var zeroPages = 0
        public var rawPages = 0
        public var squeezedPages = 0
    }

    private let layout: Layout
    private let share: LaneShare
    private var expander = BodyExpander()
    private var scratch = PageBuffer(byteCount: Limits.batchPages * Limits.pageBytes)

    public init(layout: Layout, _ share: LaneShare) {
        self.layout = layout
        self.share = share
    }

    /// Installs one payload, and notes in `replica` what is whole now. Nothing is installed when a record is wrong; a
    /// damaged squeezed body stops the batch in the middle, which is harmless: the caller gives the migration up.
    public mutating func decode<I: PageInstaller & ~Copyable>(
        _ payload: RawSpan, _ replica: inout ReplicaMap, into installer: inout I
    ) throws(PayloadError) -> Counts {
        guard payload.byteCount >= BatchPayload.headBytes else {
            throw .short(want: BatchPayload.headBytes, got: payload.byteCount)
        }
        let records = Int(payload.littleEndian(at: 0, as: UInt16.self))
        guard records <= Limits.batchRecords else { throw .tooManyRecords(records) }
        guard let codec = Codec(rawValue: payload.byte(at: 2)) else { throw .unknownCodec(payload.byte(at: 2)) }
        let flags = payload.byte(at: 3)
        guard flags & ~BatchPayload.restartFlag == 0 else { throw .unknownFlags(flags) }
        let squeezedBytes = Int(payload.littleEndian(at: 4, as: UInt32.self))
        let bodyAt = BatchPayload.headBytes + records * BatchPayload.recordBytes
        guard payload.byteCount >= bodyAt else { throw .short(want: bodyAt, got: payload.byteCount) }

        let counts = try check(payload, records)
        let length = bodyAt + squeezedBytes + counts.rawPages * Limits.pageBytes
        guard squeezedBytes <= BatchPayload.squeezedBytesMax, payload.byteCount == length else {
            throw .length(want: length, got: payload.byteCount)
        }
        try expander.expand(
            payload.extracting(bodyAt..<bodyAt + squeezedBytes), codec, into: &scratch,
            byteCount: counts.squeezedPages * Limits.pageBytes, restart: flags & BatchPayload.restartFlag != 0)
        try install(payload, records, rawAt: bodyAt + squeezedBytes, &replica, into: &installer)
        return counts
    }

    private func check(_ payload: RawSpan, _ records: Int) throws(PayloadError) -> Counts {
        var counts = Counts()
        var next: UInt64 = 0
        for index in 0..<records {
            let at = BatchPayload.headBytes + index * BatchPayload.recordBytes
            let first = payload.littleEndian(at: at, as: UInt32.self)
            let count = Int(payload.littleEndian(at: at + 4, as: UInt16.self))
            guard let form = Form(rawValue: payload.byte(at: at + 6)) else {
                throw .unknownForm(payload.byte(at: at + 6))
            }
            guard count > 0 else { throw .emptyRun }
            guard UInt64(first) >= next else { throw .notAscending(page: first) }
            next = UInt64(first) + UInt64(count)
            guard next <= UInt64(layout.pageCount), let block = layout.block(of: first) else {
                throw .outsideMemory(page: next)
            }
            guard layout.block(of: PageNumber(next - 1)) == block else { throw .acrossBlocks(page: first) }
            // With several lanes a run stays in its stripe: no two lanes may ever touch the same page.
            let sameStripe = share.lanes == 1 || first >> 6 == PageNumber(next - 1) >> 6
            guard share.owns(first), sameStripe else { throw .wrongLane(page: first) }
            switch form {
            case .zero: counts.zeroPages += count
            case .raw: counts.rawPages += count
            case .squeezed: counts.squeezedPages += count
            }
        }
        let dataPages = counts.rawPages + counts.squeezedPages
        guard dataPages <= Limits.batchPages else { throw .tooManyPages(dataPages) }
        return counts
    }

    private func install<I: PageInstaller & ~Copyable>(
        _ payload: RawSpan, _ records: Int, rawAt: Int, _ replica: inout ReplicaMap, into installer: inout I
    ) throws(PayloadError) {
        var rawAt = rawAt
        var squeezedAt = 0
        for index in 0..<records {
            let at = BatchPayload.headBytes + index * BatchPayload.recordBytes
            let first = payload.littleEndian(at: at, as: UInt32.self)
            let count = Int(payload.littleEndian(at: at + 4, as: UInt16.self))
            let byteCount = count * Limits.pageBytes
            switch Form(rawValue: payload.byte(at: at + 6)) {
            case .zero?:
                try installer.installZero(first: first, count: count)
            case .raw?:
                try installer.install(first: first, payload.extracting(rawAt..<rawAt + byteCount))
                rawAt += byteCount
            case .squeezed?:
                try installer.install(first: first, scratch.bytes.extracting(squeezedAt..<squeezedAt + byteCount))
                squeezedAt += byteCount
            case nil:
                preconditionFailure("the form was checked before")
            }
            replica.setWhole(first: first, count: count)
        }
    }
}
