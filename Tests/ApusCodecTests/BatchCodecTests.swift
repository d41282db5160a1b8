import ApusCodec
import ApusMemory
import ApusSystem
import Testing

/// Numbers that are the same in every run.
struct SeededGenerator: RandomNumberGenerator {
    var state: UInt64
    init(seed: UInt64) { state = seed &* 0x9E37_79B9_7F4A_7C15 | 1 }
    mutating func next() -> UInt64 {
        state ^= state << 13
        state ^= state >> 7
        state ^= state << 17
        return state
    }
}

enum PageKind: CaseIterable { case zero, text, random, almostZero }

func pageBytes(_ kind: PageKind, _ random: inout SeededGenerator) -> [UInt8] {
    switch kind {
    case .zero: [UInt8](repeating: 0, count: 4096)
    case .text: (0..<4096).map { UInt8(truncatingIfNeeded: $0 / 64 &* 7 &+ Int(random.next() % 3)) }
    case .random: (0..<4096).map { _ in UInt8(truncatingIfNeeded: random.next()) }
    case .almostZero: [UInt8](repeating: 0, count: 4095) + [1]
    }
}

/// Keeps what was installed.
struct Image: PageInstaller {
    var pages: [PageNumber: [UInt8]] = [:]
    mutating func installZero(first: PageNumber, count: Int) {
        for page in 0..<PageNumber(count) { pages[first + page] = [UInt8](repeating: 0, count: 4096) }
    }
    mutating func install(first: PageNumber, _ bytes: RawSpan) {
        for page in 0..<bytes.byteCount / 4096 {
            pages[first + PageNumber(page)] = bytes.extracting(page * 4096..<(page + 1) * 4096).bytesCopied
        }
    }
    var patchable: PageRanges {
        var ranges = PageRanges()
        ranges.append(0..<layout.blocks[1].firstPage)
        return ranges
    }
    mutating func patch(_ page: PageNumber, mask: UInt32, lineBytes: Int, _ bytes: RawSpan) throws(PayloadError) {
        guard var old = pages[page] else { throw .install("page \(page) was never installed") }
        var from = 0
        for line in 0..<4096 / lineBytes where mask & (1 << UInt32(line)) != 0 {
            for index in 0..<lineBytes { old[line * lineBytes + index] = bytes.byte(at: from + index) }
            from += lineBytes
        }
        pages[page] = old
    }
}

func payload(_ encoder: inout BatchEncoder, _ batch: inout Batch, _ choice: CodecChoice) -> [UInt8] {
    let result = encoder.encode(&batch, choice)
    return encoder.head.bytes.extracting(0..<result.headBytes).bytesCopied
        + batch.data.bytes.extracting(0..<result.rawBytes).bytesCopied
}

let layout: Layout = {
    do { return try Layout([("pc.ram", 40 << 20), ("pc.rom", 128 << 10)]) } catch { preconditionFailure("\(error)") }
}()

@Suite struct BatchCodecTests {
    /// Any mixture of pages, in any codec, arrives as it was sent; the zstd stream runs through all batches.
    @Test(arguments: [1, 2, 3, 4, 5, 6, 7, 8] as [UInt64])
    func everyMixtureArrives(seed: UInt64) throws {
        var random = SeededGenerator(seed: seed)
        var encoder = BatchEncoder()
        var decoder = BatchDecoder(layout: layout, LaneShare(lane: 0, lanes: 1))
        var replica = ReplicaMap(LaneShare(lane: 0, lanes: 1))
        for round in 0..<12 {
            var batch = Batch()
            var sent: [PageNumber: [UInt8]] = [:]
            var page = PageNumber(random.next() % 5000)
            for _ in 0..<Int.random(in: 1...200, using: &random) {
                let kind = PageKind.allCases.randomElement(using: &random) ?? .zero
                let asData = kind != .zero || random.next() % 4 == 0
                guard batch.accepts(page, form: asData ? .raw : .zero, startsBlock: false) else { break }
                let bytes = pageBytes(kind, &random)
                if asData {
                    batch.add(page, bytes.rawBytes, startsBlock: false)
                } else {
                    batch.addZero(page, startsBlock: false)
                }
                sent[page] = bytes
                page += random.next() % 3 == 0 ? PageNumber(random.next() % 20) + 1 : 1
            }
            let choices: [CodecChoice] = [.raw, .lz4, .zstd(level: 1), .zstd(level: 3)]
            let bytes = payload(&encoder, &batch, choices[Int(random.next() % 4)])
            var image = Image()
            _ = try decoder.decode(bytes.rawBytes, &replica, into: &image)
            #expect(image.pages == sent, "seed \(seed), round \(round)")
        }
    }

    @Test func zeroPagesFoundInDataTravelWithoutData() throws {
        var batch = Batch()
        let zero = [UInt8](repeating: 0, count: 4096)
        for page in 0..<64 { batch.add(PageNumber(page), zero.rawBytes, startsBlock: page == 0) }
        var encoder = BatchEncoder()
        let result = encoder.encode(&batch, .raw)
        #expect(result.zeroPages == 64)
        #expect(result.rawBytes == 0)
        #expect(result.headBytes == 16)
    }

    @Test func incompressiblePagesTravelRawWhateverWasChosen() throws {
        var random = SeededGenerator(seed: 9)
        var encoder = BatchEncoder()
        for choice in [CodecChoice.lz4, .zstd(level: 1), .zstd(level: 3)] {
            var batch = Batch()
            for page in 0..<64 {
                batch.add(PageNumber(page), pageBytes(.random, &random).rawBytes, startsBlock: false)
            }
            let result = encoder.encode(&batch, choice)
            #expect(result.codec == .none)
            #expect(result.rawBytes == 64 * 4096)
        }
    }

    /// A zstd stream that fell back to raw once must start anew, or the receiver's history is wrong.
    @Test func theStreamSurvivesAFallBack() throws {
        var random = SeededGenerator(seed: 10)
        var encoder = BatchEncoder()
        var decoder = BatchDecoder(layout: layout, LaneShare(lane: 0, lanes: 1))
        var replica = ReplicaMap(LaneShare(lane: 0, lanes: 1))
        for kind in [PageKind.text, .random, .text, .text] {
            var batch = Batch()
            var sent: [PageNumber: [UInt8]] = [:]
            for page in 0..<PageNumber(64) {
                let bytes = pageBytes(kind, &random)
                batch.add(page, bytes.rawBytes, startsBlock: false)
                sent[page] = bytes
            }
            var image = Image()
            _ = try decoder.decode(payload(&encoder, &batch, .zstd(level: 1)).rawBytes, &replica, into: &image)
            #expect(image.pages == sent)
        }
    }

    @Test func runsNeverCrossBlocks() {
        var batch = Batch()
        let last = layout.blocks[1].firstPage - 1
        batch.addZero(last, startsBlock: false)
        batch.addZero(last + 1, startsBlock: true)
        #expect(batch.recordCount == 2)
    }

    @Test func aBatchRefusesAPageTwice() {
        var batch = Batch()
        batch.addZero(7, startsBlock: false)
        // #expect cannot hold a move-only value.
        let answers = [
            batch.accepts(7, form: .raw, startsBlock: false), batch.accepts(6, form: .zero, startsBlock: false),
            batch.accepts(8, form: .raw, startsBlock: false),
        ]
        #expect(answers == [false, false, true])
    }

    /// Blocks of a few pages, which follow each other without a gap, included.
    @Test(arguments: 1...20 as ClosedRange<UInt64>) func whatIsAcceptedFindsRoom(seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        for _ in 0..<50 {
            var batch = Batch()
            let bytes = [UInt8](repeating: 1, count: 4096)
            let gap = random.next() % 4 + 1
            var page = PageNumber(0)
            for _ in 0..<400 {
                page += random.next() % gap == 0 ? 1 : 2
                let isZero = random.next() % 8 != 0
                let startsBlock = random.next() % 3 == 0
                guard batch.accepts(page, form: isZero ? .zero : .raw, startsBlock: startsBlock) else { break }
                if isZero {
                    batch.addZero(page, startsBlock: startsBlock)
                } else {
                    batch.add(page, bytes.rawBytes, startsBlock: startsBlock)
                }
            }
            let (records, dataPages) = (batch.recordCount, batch.dataPages)
            #expect(records == Limits.batchRecords || dataPages == Limits.batchPages)
        }
    }
}

@Suite struct HostilePayloadTests {
    private func decode(_ bytes: [UInt8], lane: Int = 0, lanes: Int = 1) throws(PayloadError) -> Int {
        var decoder = BatchDecoder(layout: layout, LaneShare(lane: lane, lanes: lanes))
        var replica = ReplicaMap(LaneShare(lane: lane, lanes: lanes))
        var image = Image()
        _ = try decoder.decode(bytes.rawBytes, &replica, into: &image)
        return image.pages.count
    }

    private func record(_ first: UInt32, _ count: UInt16, _ form: UInt8) -> [UInt8] {
        [
            UInt8(truncatingIfNeeded: first), UInt8(truncatingIfNeeded: first >> 8),
            UInt8(truncatingIfNeeded: first >> 16), UInt8(truncatingIfNeeded: first >> 24),
            UInt8(truncatingIfNeeded: count), UInt8(truncatingIfNeeded: count >> 8), form, 0,
        ]
    }

    private func head(_ records: UInt16, codec: UInt8 = 0, flags: UInt8 = 0, squeezed: UInt32 = 0) -> [UInt8] {
        [UInt8(truncatingIfNeeded: records), UInt8(truncatingIfNeeded: records >> 8), codec, flags]
            + [0, 8, 16, 24].map { UInt8(truncatingIfNeeded: squeezed >> $0) }
    }

    @Test func eachLieIsNamed() {
        let page = [UInt8](repeating: 1, count: 4096)
        let outside = layout.pageCount
        let boundary = layout.blocks[1].firstPage
        #expect(throws: PayloadError.short(want: 8, got: 3)) { try decode([1, 2, 3]) }
        #expect(throws: PayloadError.tooManyRecords(129)) { try decode(head(129)) }
        #expect(throws: PayloadError.unknownCodec(9)) { try decode(head(0, codec: 9)) }
        #expect(throws: PayloadError.unknownFlags(2)) { try decode(head(0, flags: 2)) }
        #expect(throws: PayloadError.short(want: 16, got: 8)) { try decode(head(1)) }
        #expect(throws: PayloadError.unknownForm(99)) { try decode(head(1) + record(0, 1, 99)) }
        #expect(throws: PayloadError.unknownForm(0)) { try decode(head(1) + record(0, 1, 0)) }
        #expect(throws: PayloadError.emptyRun) { try decode(head(1) + record(0, 0, 1)) }
        #expect(throws: PayloadError.notAscending(page: 4)) {
            try decode(head(2) + record(3, 2, 1) + record(4, 1, 1))
        }
        #expect(throws: PayloadError.outsideMemory(page: UInt64(outside) + 1)) {
            try decode(head(1) + record(outside, 1, 1))
        }
        #expect(throws: PayloadError.outsideMemory(page: 1 << 32)) {
            try decode(head(1) + record(UInt32.max, 1, 1))
        }
        #expect(throws: PayloadError.acrossBlocks(page: boundary - 1)) {
            try decode(head(1) + record(boundary - 1, 2, 1))
        }
        #expect(throws: PayloadError.wrongLane(page: 0)) { try decode(head(1) + record(0, 1, 1), lane: 1, lanes: 2) }
        #expect(throws: PayloadError.wrongLane(page: 60)) { try decode(head(1) + record(60, 10, 1), lanes: 2) }
        #expect(throws: PayloadError.tooManyPages(65)) { try decode(head(1) + record(0, 65, 2)) }
        #expect(throws: PayloadError.length(want: 16 + 4096, got: 16)) { try decode(head(1) + record(0, 1, 2)) }
        #expect(throws: PayloadError.length(want: 16 + 4096, got: 17 + 4096)) {
            try decode(head(1) + record(0, 1, 2) + page + [0])
        }
        #expect(throws: PayloadError.corruptBody(.zstd)) {
            try decode(head(1, codec: 2, squeezed: 4) + record(0, 1, 3) + [1, 2, 3, 4])
        }
        #expect(throws: PayloadError.corruptBody(.lz4)) {
            try decode(head(1, codec: 1, squeezed: 4) + record(0, 1, 3) + [1, 2, 3, 4])
        }
        #expect(throws: PayloadError.corruptBody(.none)) { try decode(head(1) + record(0, 1, 3)) }
    }

    /// Bytes changed at random never trap; what decodes all the same stays inside the layout.
    @Test func mutationsNeverTrap() throws {
        var random = SeededGenerator(seed: 77)
        var encoder = BatchEncoder()
        for _ in 0..<300 {
            var batch = Batch()
            for page in 0..<PageNumber(8) {
                let kind = PageKind.allCases.randomElement(using: &random) ?? .zero
                batch.add(page * 2, pageBytes(kind, &random).rawBytes, startsBlock: false)
            }
            var bytes = payload(&encoder, &batch, random.next() % 2 == 0 ? .lz4 : .zstd(level: 1))
            for _ in 0..<4 {
                let place = Int(random.next() % UInt64(min(bytes.count, 200)))
                bytes[place] = UInt8(truncatingIfNeeded: random.next())
            }
            if random.next() % 4 == 0 { bytes.removeLast(Int(random.next() % UInt64(bytes.count))) }
            _ = try? decode(bytes)
        }
    }
}
