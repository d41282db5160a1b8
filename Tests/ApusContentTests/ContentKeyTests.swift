import ApusContent
import ApusSystem
import Testing

@Suite struct ContentKeyTests {
    @Test func equalPagesHaveEqualNamesUnderOneKeyOnly() {
        let bytes = page(1)
        let (a, b, other) = (testKey(), testKey(), testKey("another tenant"))
        #expect(a.digest(of: bytes.rawBytes) == b.digest(of: bytes.rawBytes))
        #expect(a.hint(of: bytes.rawBytes) == b.hint(of: bytes.rawBytes))
        #expect(a.fingerprint == b.fingerprint)
        #expect(a.digest(of: bytes.rawBytes) != other.digest(of: bytes.rawBytes))
        #expect(a.hint(of: bytes.rawBytes) != other.hint(of: bytes.rawBytes))
        #expect(a.fingerprint != other.fingerprint)
        let secret = ContentKey(secret: Array(repeating: 8, count: 32), domain: "tenant")
        #expect(a.digest(of: bytes.rawBytes) != secret.digest(of: bytes.rawBytes))
    }

    /// The digest is no plain SHA-256: without the key nobody can tell whether a host holds a page.
    @Test func withoutTheKeyThereIsNoName() {
        let bytes = page(1)
        #expect(testKey().digest(of: bytes.rawBytes) != Digest.of(bytes.rawBytes))
    }

    /// What two agents and every store must agree on. The length stands before the pages: no digest is the beginning of
    /// another's.
    @Test func thisIsWhatIsDigested() {
        let secret = [UInt8](repeating: 7, count: ContentKey.secretBytes)
        let domainKey = sha256(secret + Array("tenant".utf8))
        func label(_ text: String) -> [UInt8] { Array(text.utf8) + [UInt8](repeating: 0, count: 32 - text.utf8.count) }
        #expect(
            testKey().digest(of: page(1).rawBytes) == Digest.of((domainKey + label("apus page") + page(1)).rawBytes))
        for pages in [2, 3, 16] {
            let bytes = (0..<pages).flatMap { page($0) }
            let message = domainKey + label("apus run") + littleEndian(UInt64(pages * 4096)) + bytes
            #expect(testKey().digest(of: bytes.rawBytes) == Digest.of(message.rawBytes))
        }
    }

    private func sha256(_ bytes: [UInt8]) -> [UInt8] {
        let digest = Digest.of(bytes.rawBytes)
        return (0..<4).flatMap { littleEndian(digest.words[$0]) }
    }

    /// Whoever has digests of pages has none of their runs, nor of parts of them, nor of the same pages in another order.
    @Test func aRunHasADigestOfItsOwn() {
        let pages = (0..<16).map { page($0) }
        let all = (1...16).map { testKey().digest(of: pages[0..<$0].flatMap(\.self).rawBytes) }
        for (index, digest) in all.enumerated() { #expect(!all[0..<index].contains(digest)) }
        let turned = (pages[1] + pages[0]).rawBytes
        #expect(testKey().digest(of: turned) != all[1])
        #expect(testKey("another tenant").digest(of: (pages[0] + pages[1]).rawBytes) != all[1])
    }

    @Test func everyBitCounts() {
        let key = testKey()
        var bytes = page(2)
        let digest = key.digest(of: bytes.rawBytes)
        let hint = key.hint(of: bytes.rawBytes)
        for bit in stride(from: 0, to: 4096 * 8, by: 37) {
            bytes[bit / 8] ^= 1 << (bit % 8)
            #expect(key.digest(of: bytes.rawBytes) != digest)
            #expect(key.hint(of: bytes.rawBytes) != hint)
            bytes[bit / 8] ^= 1 << (bit % 8)
        }
        #expect(key.digest(of: bytes.rawBytes) == digest)
    }

    @Test func digestsSurviveBeingStored() {
        var buffer = PageBuffer(byteCount: 64)
        let digest = testKey().digest(of: page(3).rawBytes)
        digest.write(to: &buffer, at: 8)
        #expect(Digest(from: buffer.bytes, at: 8) == digest)
    }
}

@Suite struct HintTableTests {
    @Test(arguments: [0, 1, 7, 1000, 100_000]) func whatWasInsertedIsFound(count: Int) throws {
        var made = HintTable(entriesMax: count)
        let key = testKey()
        func hint(_ number: Int) -> UInt64 {
            key.hint(of: littleEndian(UInt64(number)).rawBytes)
        }
        var refused = 0
        for number in 0..<count where made?.insert(hint(number), UInt32(number)) != true { refused += 1 }
        var wrong = 0
        for number in 0..<count where made?.find(hint(number)) != UInt32(number) { wrong += 1 }
        var invented = 0
        for number in count..<count + 100_000 where made?.find(hint(number)) != nil { invented += 1 }
        // A tag has 32 bits: two of 100,000 may share one and lie together, but hardly more.
        #expect(refused <= 1 && wrong <= 1 && invented <= 1)
        let isTooMany = made?.insert(1, 1)
        #expect(isTooMany == (refused > 0))
    }

    @Test func theFirstValueStays() throws {
        var made = HintTable(entriesMax: 10)
        let first = made?.insert(5, 1)
        let second = made?.insert(5, 2)
        let found = made?.find(5)
        #expect(first == true && second == false && found == 1)
    }
}

@Suite struct ReferenceGateTests {
    private func answer(_ gate: inout ReferenceGate, refused: Int, readMsPerPage: Double) {
        gate.answered(
            proved: 1024 - refused, refused: refused, readMs: Double(1024 - refused) * readMsPerPage, literalMs: 0.1)
    }

    @Test func itStaysOpenWhileReferencesPay() {
        var gate = ReferenceGate()
        for _ in 0..<100 { answer(&gate, refused: 100, readMsPerPage: 0.05) }
        #expect(gate.isOpen && gate.closures == 0)
    }

    @Test func aSlowStorageShutsIt() {
        var gate = ReferenceGate()
        answer(&gate, refused: 0, readMsPerPage: 0.2)
        #expect(!gate.isOpen)
    }

    /// However long everything is refused, only a vanishing part of the pages is tried.
    @Test func aStormOfRefusalsDiesDown() {
        var gate = ReferenceGate()
        var tried = 0
        for _ in 0..<160_000 {
            if gate.isOpen {
                gate.answered(proved: 0, refused: 64, readMs: 0, literalMs: 0.1)
                tried += 64
            } else {
                gate.passed(pages: 64)
            }
        }
        #expect(tried < 160_000 * 64 / 100)
        #expect(gate.closures > 5)
    }

    /// A quarter of a window is enough to know.
    @Test func aStormIsSeenBeforeTheWindowIsFull() {
        var gate = ReferenceGate()
        var tried = 0
        while gate.isOpen {
            gate.answered(proved: 0, refused: 64, readMs: 0, literalMs: 0.1)
            tried += 64
        }
        #expect(tried == 320)
    }

    @Test func itOpensAgainAndForgets() {
        var gate = ReferenceGate()
        answer(&gate, refused: 1024, readMsPerPage: 0)
        var pages = 0
        while !gate.isOpen {
            gate.passed(pages: 64)
            pages += 64
        }
        #expect(pages == 16 << 10)
        answer(&gate, refused: 0, readMsPerPage: 0.01)
        answer(&gate, refused: 1024, readMsPerPage: 0)
        gate.passed(pages: 16 << 10)
        #expect(gate.isOpen, "a good window in between resets the patience")
    }
}
