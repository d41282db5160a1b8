import ApusCodec
import ApusMemory
import ApusSystem
import Testing

let wholeVM = LaneShare(lane: 0, lanes: 1)

/// Both ends of one lane, without a link.
struct LanePair: ~Copyable {
    var encoder: LaneEncoder
    var batches = BatchDecoder(layout: layout, wholeVM)
    var updates = UpdateDecoder(layout: layout)
    var replica = ReplicaMap(wholeVM)
    var image = Image()
    /// Payload bytes of each frame, in order.
    var frames: [(isUpdate: Bool, bytes: [UInt8])] = []

    init(lineBytes: Int? = 128, tableBytesMax: Int = .max, squeezes: Bool = false) {
        encoder = LaneEncoder(
            wholeVM, .init(squeezes: squeezes, lineBytes: lineBytes, tableBytesMax: tableBytesMax), cpuNs: { 0 })
        encoder.mayPatch(image.patchable)
    }

    mutating func send(_ pages: [(PageNumber, [UInt8])], nowNs: UInt64 = 0) throws {
        var batch = Batch()
        for (page, bytes) in pages { batch.add(page, bytes.rawBytes, startsBlock: false) }
        while let frame = encoder.next(&batch, linkBytesPerNs: 0.1, nowNs: nowNs) {
            switch frame {
            case .pages(let result):
                let bytes =
                    encoder.pages.head.bytes.extracting(0..<result.headBytes).bytesCopied
                    + batch.data.bytes.extracting(0..<result.rawBytes).bytesCopied
                frames.append((false, bytes))
                _ = try batches.decode(bytes.rawBytes, &replica, into: &image)
            case .updates(let result): try apply(result)
            }
            let isConfirmed = encoder.confirm(upTo: UInt64(frames.count))
            #expect(isConfirmed)
        }
    }

    mutating func fence() throws {
        if let result = encoder.flush(linkBytesPerNs: 0.1) { try apply(result) }
        let isConfirmed = encoder.confirm(upTo: UInt64(frames.count))
        #expect(isConfirmed)
    }

    private mutating func apply(_ result: UpdateEncoder.Result) throws {
        let bytes =
            encoder.updates.head.bytes.extracting(0..<result.headBytes).bytesCopied
            + encoder.updates.lines.bytes.extracting(0..<result.rawBytes).bytesCopied
        frames.append((true, bytes))
        _ = try updates.decode(bytes.rawBytes, &replica, into: &image)
    }
}

@Suite struct LineTests {
    private func page(_ seed: UInt64) -> [UInt8] {
        var random = SeededGenerator(seed: seed)
        return pageBytes(.random, &random)
    }

    /// Any pages changed in any lines arrive as they are, whatever the line size, the codec and the order of sending.
    @Test(arguments: [128, 256, 1024], [1, 2, 3, 4] as [UInt64])
    func everyChangeArrives(lineBytes: Int, seed: UInt64) throws {
        var random = SeededGenerator(seed: seed)
        var pair = LanePair(lineBytes: lineBytes, squeezes: seed % 2 == 0)
        var source: [PageNumber: [UInt8]] = [:]
        for number in 0..<PageNumber(200) { source[number] = pageBytes(.random, &random) }
        for _ in 0..<60 {
            var numbers: Set<PageNumber> = []
            for _ in 0..<Int.random(in: 1...64, using: &random) { numbers.insert(PageNumber(random.next() % 200)) }
            for number in numbers.sorted() {
                switch random.next() % 8 {
                case 0: source[number] = [UInt8](repeating: 0, count: 4096)
                case 1: source[number] = pageBytes(.random, &random)
                default:
                    for _ in 0..<random.next() % 6 {
                        source[number]?[Int(random.next() % 4096)] = UInt8(truncatingIfNeeded: random.next())
                    }
                }
            }
            try pair.send(numbers.sorted().map { ($0, source[$0] ?? []) })
        }
        try pair.fence()
        for (number, bytes) in pair.image.pages { #expect(bytes == source[number], "page \(number)") }
        let filtered = pair.encoder.filtered
        #expect(filtered.linePages > 100)
    }

    @Test func aPageSentAgainTravelsAsItsChangedLine() throws {
        var pair = LanePair()
        var bytes = page(1)
        try pair.send([(7, bytes)])
        bytes[300] ^= 1
        try pair.send([(7, bytes)])
        try pair.fence()
        #expect(pair.frames.map(\.isUpdate) == [false, true])
        #expect(pair.frames[1].bytes.count == UpdatePayload.headBytes + UpdatePayload.entryBytes + 128)
        #expect(pair.image.pages[7] == bytes)
    }

    @Test func anUnchangedPageDoesNotTravel() throws {
        var pair = LanePair()
        let bytes = page(2)
        try pair.send([(7, bytes)])
        try pair.send([(7, bytes)])
        try pair.fence()
        #expect(pair.frames.count == 1)
        let filtered = pair.encoder.filtered
        #expect(filtered.samePages == 1 && filtered.linePages == 0)
    }

    /// A line in a page of zeros is an update too; a page that becomes zero is whole.
    @Test func zerosAreWholePages() throws {
        var pair = LanePair()
        var bytes = [UInt8](repeating: 0, count: 4096)
        try pair.send([(7, bytes)])
        bytes[4095] = 1
        try pair.send([(7, bytes)])
        try pair.fence()
        #expect(pair.frames.map(\.isUpdate) == [false, true])
        #expect(pair.image.pages[7] == bytes)
        bytes[4095] = 0
        try pair.send([(7, bytes)])
        try pair.fence()
        #expect(pair.frames.map(\.isUpdate) == [false, true, false])
        #expect(pair.image.pages[7] == bytes)
    }

    @Test func updatesGatherUntilThePageComesAgain() throws {
        var pair = LanePair()
        var pages: [(PageNumber, [UInt8])] = (0..<10).map { ($0, page(UInt64($0) + 1)) }
        try pair.send(pages)
        for index in 0..<10 {
            pages[index].1[0] ^= 1
            try pair.send([pages[index]])
        }
        #expect(pair.frames.count == 1)
        pages[9].1[0] ^= 2
        try pair.send([pages[9]])
        #expect(pair.frames.map(\.isUpdate) == [false, true])
        try pair.fence()
        #expect(pair.frames.map(\.isUpdate) == [false, true, true])
        for (number, bytes) in pages { #expect(pair.image.pages[number] == bytes) }
    }

    @Test func oldUpdatesAreDue() throws {
        var pair = LanePair()
        var bytes = page(3)
        try pair.send([(7, bytes), (9, bytes)], nowNs: 5)
        bytes[0] ^= 1
        try pair.send([(7, bytes)], nowNs: 1_000)
        let due = pair.encoder.dueNs
        #expect(due == 1_000 + UInt64(Limits.updateAgeMs * 1e6))
        try pair.send([(9, bytes)], nowNs: 1_000 + UInt64(Limits.updateAgeMs * 1e6))
        #expect(pair.frames.map(\.isUpdate) == [false, true])
        let left = pair.encoder.dueNs
        #expect(left == nil)
    }

    /// The base number cannot overflow: a whole page comes in between.
    @Test func manyUpdatesOfOnePage() throws {
        var pair = LanePair()
        var bytes = page(4)
        for round in 0..<300 {
            bytes[round] ^= 0xff
            try pair.send([(7, bytes)])
        }
        try pair.fence()
        #expect(pair.image.pages[7] == bytes)
        #expect(pair.frames.count { !$0.isUpdate } == 3)
    }

    @Test func pagesBeyondTheCapTravelWhole() throws {
        // Room for one stripe of 64 pages.
        var pair = LanePair(tableBytesMax: 64 * 32 * 8)
        var bytes = page(5)
        try pair.send([(1, bytes), (100, bytes)])
        bytes[0] ^= 1
        try pair.send([(1, bytes), (100, bytes)])
        try pair.fence()
        #expect(pair.frames.map(\.isUpdate) == [false, false, true])
        #expect(pair.image.pages == [1: bytes, 100: bytes])
        let table = pair.encoder.tableBytes
        #expect(table == 64 * 32 * 8)
    }

    @Test func whatTheReceiverCannotPatchTravelsWhole() throws {
        var pair = LanePair()
        let rom = layout.blocks[1].firstPage
        var bytes = page(6)
        for _ in 0..<2 {
            bytes[0] ^= 1
            try pair.send([(rom, bytes)])
        }
        try pair.fence()
        #expect(pair.frames.map(\.isUpdate) == [false, false])
        #expect(pair.image.pages == [rom: bytes])
    }

    /// Alternating zero runs leave few records: pages that cannot be taken out stay whole.
    @Test func aBatchFullOfRecordsKeepsItsPages() throws {
        var pair = LanePair()
        func batch(_ change: UInt8) -> Batch {
            var batch = Batch()
            for run in 0..<PageNumber(64) {
                let first = run * 20
                batch.addZero(first, startsBlock: false)
                var bytes = [UInt8](repeating: 7, count: 4096)
                bytes[9] = change
                batch.add(first + 1, bytes.rawBytes, startsBlock: false)
            }
            return batch
        }
        for change in [1, 2] as [UInt8] {
            var batch = batch(change)
            while let frame = pair.encoder.next(&batch, linkBytesPerNs: 0.1, nowNs: 0) {
                guard case .pages(let result) = frame else { continue }
                let bytes =
                    pair.encoder.pages.head.bytes.extracting(0..<result.headBytes).bytesCopied
                    + batch.data.bytes.extracting(0..<result.rawBytes).bytesCopied
                _ = try pair.batches.decode(bytes.rawBytes, &pair.replica, into: &pair.image)
            }
        }
        try pair.fence()
        for run in 0..<PageNumber(64) { #expect(pair.image.pages[run * 20 + 1]?[9] == 2) }
    }
}

@Suite struct LineGaugeTests {
    /// Writers of whole pages save nothing: most pages are not hashed any more, a sample is, and when it pays again all are.
    @Test func switchesOffAndOnAgain() {
        var gauge = LineGauge()
        func share() -> Int { (0..<PageNumber(64 * 64)).count { gauge.tracks($0, wholeVM) } }
        #expect(share() == 4096)
        for _ in 0..<100 { gauge.learn(pages: 64, ns: 64 * 300, again: 64, savedBytes: 0) }
        gauge.decide(linkBytesPerNs: 0.125)
        #expect(share() == 4096 / LineGauge.sampleStripes)
        for _ in 0..<100 { gauge.learn(pages: 64, ns: 64 * 300, again: 64, savedBytes: 64 * 3900) }
        gauge.decide(linkBytesPerNs: 0.125)
        #expect(share() == 4096)
    }

    /// On a link faster than the hash nothing is gained, however little changes.
    @Test func offOnAVeryFastLink() {
        var gauge = LineGauge()
        gauge.learn(pages: 6400, ns: 6400 * 400, again: 6400, savedBytes: 6400 * 3900)
        gauge.decide(linkBytesPerNs: 12.5)
        #expect(!gauge.isOn)
        gauge.decide(linkBytesPerNs: 1.25)
        #expect(gauge.isOn)
    }

    /// First rounds send nothing again, and say nothing about what will be.
    @Test func firstSendsDoNotSwitchItOff() {
        var gauge = LineGauge()
        for _ in 0..<1000 { gauge.learn(pages: 64, ns: 64 * 300, again: 0, savedBytes: 0) }
        gauge.decide(linkBytesPerNs: 0.125)
        #expect(gauge.isOn)
    }
}
