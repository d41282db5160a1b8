public import ApusMemory
internal import ApusSystem

/// Where a receiving lane puts pages. Called once per run, never per page.
public protocol PageInstaller: ~Copyable {
    /// Makes the pages read as zero.
    mutating func installZero(first: PageNumber, count: Int) throws(PayloadError)
    /// Installs whole pages; `bytes` is valid during the call only.
    mutating func install(first: PageNumber, _ bytes: RawSpan) throws(PayloadError)
}

/// Checks and unpacks payloads from a peer that may be hostile. One per lane.
public struct BatchDecoder: ~Copyable, Sendable {
    public struct Counts: Sendable, Equatable {
        public var zeroPages = 0
        public var rawPages = 0
        public var squeezedPages = 0
    }

    private let layout: Layout
    private let lane: Int
    private let lanes: Int
    private var expander: ZstdExpander?
    private var scratch = PageBuffer(byteCount: Limits.batchPages * Limits.pageBytes)

    public init(layout: Layout, lane: Int, lanes: Int) {
        self.layout = layout
        self.lane = lane
        self.lanes = lanes
    }

    /// Installs one payload. Nothing is installed when a record is wrong; a damaged squeezed body stops the batch in
    /// the middle, which is harmless: the caller gives the migration up.
    public mutating func decode<I: PageInstaller & ~Copyable>(
        _ payload: RawSpan, into installer: inout I
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
        try expand(
            payload.extracting(bodyAt..<bodyAt + squeezedBytes), codec, pages: counts.squeezedPages,
            restart: flags & BatchPayload.restartFlag != 0)
        try install(payload, records, rawAt: bodyAt + squeezedBytes, into: &installer)
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
            let sameStripe = lanes == 1 || first >> 6 == PageNumber(next - 1) >> 6
            guard laneIndex(of: first, lanes: lanes) == lane, sameStripe else { throw .wrongLane(page: first) }
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

    private mutating func expand(
        _ body: RawSpan, _ codec: Codec, pages: Int, restart: Bool
    ) throws(PayloadError) {
        let byteCount = pages * Limits.pageBytes
        switch codec {
        case .none:
            guard pages == 0, body.byteCount == 0 else { throw .corruptBody(.none) }
        case .lz4:
            guard LZ4.expand(body, into: &scratch, byteCount: byteCount) else { throw .corruptBody(.lz4) }
        case .zstd:
            if restart || expander == nil { expander = ZstdExpander() }
            guard expander?.expand(body, into: &scratch, byteCount: byteCount) == true else {
                throw .corruptBody(.zstd)
            }
        }
    }

    private func install<I: PageInstaller & ~Copyable>(
        _ payload: RawSpan, _ records: Int, rawAt: Int, into installer: inout I
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
        }
    }
}
