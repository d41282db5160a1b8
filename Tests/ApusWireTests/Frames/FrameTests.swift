import ApusMemory
import ApusSystem
import ApusWire
import Testing

@Suite struct FrameTests {
    private func header(_ change: (inout [UInt8]) -> Void = { _ in }, resum: Bool = true) throws(FrameError)
        -> FrameHeader
    {
        var buffer = PageBuffer(byteCount: FrameHeader.byteCount)
        FrameHeader(kind: .fence, lane: 3, length: 0, epoch: 7, sequence: 9, checksum: 11).store(in: &buffer)
        var bytes = buffer.bytes.extracting(0..<FrameHeader.byteCount).bytesCopied
        change(&bytes)
        if resum {
            let sum = Checksum.of(bytes.rawBytes.extracting(0..<32))
            for index in 0..<8 { bytes[32 + index] = UInt8(truncatingIfNeeded: sum >> UInt64(index * 8)) }
        }
        return try FrameHeader(bytes.rawBytes)
    }

    @Test func aHeaderComesBack() throws {
        let read = try header()
        #expect(read == FrameHeader(kind: .fence, lane: 3, length: 0, epoch: 7, sequence: 9, checksum: 11))
    }

    @Test func theLayoutIsPinned() throws {
        var buffer = PageBuffer(byteCount: 40)
        FrameHeader(kind: .batch, lane: 0x0201, length: 0x04030201, epoch: 5, sequence: 6, checksum: 7).store(
            in: &buffer)
        let bytes = buffer.bytes.bytesCopied
        #expect(Array(bytes[0..<8]) == [0x41, 0x50, 0x55, 0x53, 1, 8, 1, 2])
        #expect(Array(bytes[8..<16]) == [1, 2, 3, 4, 5, 0, 0, 0])
        #expect(bytes[16] == 6 && bytes[24] == 7)
    }

    @Test func liesAreNamed() {
        #expect(throws: FrameError.notAFrame(0x5355_5000)) { try header { $0[0] = 0 } }
        #expect(throws: FrameError.version(2)) { try header { $0[4] = 2 } }
        #expect(throws: FrameError.headerDamaged) { try header({ $0[12] ^= 1 }, resum: false) }
        #expect(throws: FrameError.unknownKind(0)) { try header { $0[5] = 0 } }
        #expect(throws: FrameError.unknownKind(99)) { try header { $0[5] = 99 } }
        #expect(throws: FrameError.tooLong(kind: .fence, length: 1, limit: 0)) { try header { $0[8] = 1 } }
        #expect(throws: FrameError.tooLong(kind: .credit, length: 0xff00_0000, limit: 16)) {
            try header {
                $0[5] = 10; $0[11] = 0xff
            }
        }
    }

    @Test func everyDamagedBitOfAHeaderIsSeen() {
        for bit in 0..<FrameHeader.byteCount * 8 {
            #expect(throws: FrameError.self) { try header({ $0[bit / 8] ^= 1 << UInt8(bit % 8) }, resum: false) }
        }
    }

    @Test func aDamagedPayloadIsSeen() throws {
        let payload: [UInt8] = (0..<100).map { UInt8($0) }
        let header = FrameHeader(
            kind: .control, lane: 0, length: 100, epoch: 0, sequence: 4, checksum: Checksum.of(payload.rawBytes))
        try header.check(payload.rawBytes)
        for index in payload.indices {
            var damaged = payload
            damaged[index] ^= 0x10
            #expect(throws: FrameError.payloadDamaged(kind: .control, sequence: 4)) {
                try header.check(damaged.rawBytes)
            }
        }
        #expect(throws: FrameError.wrongLength(kind: .control, length: 99)) {
            try header.check(payload.rawBytes.extracting(0..<99))
        }
    }

    @Test func oneSumForOneOrTwoPieces() throws {
        let bytes: [UInt8] = (0..<5000).map { UInt8(truncatingIfNeeded: $0 &* 31) }
        var running = try RunningChecksum()
        for cut in [0, 1, 240, 4096, 5000] {
            let sum = running.of(bytes.rawBytes.extracting(0..<cut), bytes.rawBytes.extracting(cut..<5000))
            #expect(sum == Checksum.of(bytes.rawBytes))
        }
    }
}

@Suite struct PayloadTests {
    @Test func helloComesBackAndIsChecked() throws {
        let hello = Hello(role: .lane, lane: 2, lanes: 4, token: Token(high: 1, low: 2))
        #expect(try Hello(hello.bytes.rawBytes) == hello)
        #expect(hello.bytes.count == Hello.byteCount)
        var bytes = hello.bytes
        bytes[12] = 0
        #expect(throws: FrameError.badPayload(.hello, "unknown role 0")) { try Hello(bytes.rawBytes) }
        bytes = hello.bytes
        bytes[0] = 9
        #expect(throws: FrameError.badPayload(.hello, "versions 9 to \(Hello.versions.upperBound)")) {
            try Hello(bytes.rawBytes)
        }
        #expect(throws: FrameError.wrongLength(kind: .hello, length: 35)) {
            try Hello(hello.bytes.rawBytes.extracting(0..<35))
        }
    }

    @Test func versionsAreNegotiated() {
        func common(_ a: ClosedRange<UInt16>, _ b: ClosedRange<UInt16>) -> UInt16? {
            Hello(role: .control, versions: a).commonVersion(with: b)
        }
        #expect(common(1...1, 1...1) == 1)
        #expect(common(1...3, 2...5) == 3)
        #expect(common(4...5, 1...3) == nil)
        #expect(common(1...2, 3...4) == nil)
    }

    @Test func welcomeAndRefusalComeBack() throws {
        let welcome = Welcome(version: 1, features: .all)
        #expect(try Welcome(welcome.bytes.rawBytes) == welcome)
        let refusal = Refusal(.busy, "später")
        #expect(try Refusal(refusal.bytes.rawBytes) == refusal)
        #expect(Refusal(.busy, String(repeating: "x", count: 5000)).bytes.count <= FrameHeader.lengthMax(of: .refusal))
    }

    @Test func layoutComesBackAndIsChecked() throws {
        let layout = try Layout([("pc.ram", 1 << 30), ("/rom@etc/acpi/tables", 131072)])
        let bytes = LayoutPayload.bytes(layout)
        #expect(try LayoutPayload.layout(bytes.rawBytes) == layout)
        for count in 0..<bytes.count {
            #expect(throws: FrameError.self) { try LayoutPayload.layout(bytes.rawBytes.extracting(0..<count)) }
        }
        #expect(throws: FrameError.self) { try LayoutPayload.layout((bytes + [0]).rawBytes) }
    }

    @Test func layoutsOfNoUseAreRefused() {
        #expect(throws: LayoutError.unaligned(block: "a", byteCount: 100)) { try Layout([("a", 100)]) }
        #expect(throws: LayoutError.sameName("a")) { try Layout([("a", 4096), ("a", 4096)]) }
        #expect(throws: LayoutError.self) { try Layout([("a", 1 << 60)]) }
        #expect(throws: LayoutError.tooManyBlocks(1025)) { try Layout((0..<1025).map { ("b\($0)", 4096) }) }
    }
}
