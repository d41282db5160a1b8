import ApusSystem
import Testing

@testable import ApusWire

/// XBZRLE data against a second, slow description of the format; the captures test it against QEMU itself.
struct XbzrleTests {
    private static func applied(_ data: [UInt8], to page: [UInt8]) throws -> [UInt8] {
        var page = page
        var span = page.mutableSpan
        var target = span.rawBytes
        try Xbzrle.apply(data.span.rawBytes, to: &target)
        return page
    }

    private func refusal(_ data: [UInt8], size: Int = 4096) -> XbzrleError? {
        do { _ = try Self.applied(data, to: [UInt8](repeating: 0, count: size)) } catch { return error as? XbzrleError }
        return nil
    }

    @Test func everyRuleIsChecked() throws {
        let page = [UInt8](0..<8)
        #expect(try Self.applied([], to: page) == page)
        #expect(try Self.applied([0, 1, 9], to: page) == [9, 1, 2, 3, 4, 5, 6, 7])
        #expect(try Self.applied([7, 1, 9], to: page) == [0, 1, 2, 3, 4, 5, 6, 9])
        #expect(try Self.applied([1, 1, 9, 2, 2, 8, 7], to: page) == [0, 9, 2, 3, 8, 7, 6, 7])
        #expect(try Self.applied([0, 8] + (10..<18), to: page) == [UInt8](10..<18))
        // A zero run of 0 behind the first, a run of new bytes of 0.
        #expect(refusal([1, 1, 9, 0, 1, 9]) == .emptyRun)
        #expect(refusal([1, 0]) == .emptyRun)
        #expect(refusal([1]) == .truncated)
        #expect(refusal([0x80]) == .truncated)
        #expect(refusal([1, 2, 9]) == .truncated)
        #expect(refusal([0x80, 0x80, 1, 1, 9]) == .lengthTooLong)
        #expect(refusal([1, 0x81, 0x80, 1, 9]) == .lengthTooLong)
        // 4096 kept bytes are possible, one more is not, and no byte fits behind them.
        #expect(refusal([0x80, 0x20, 1, 9]) == .outsidePage)
        #expect(refusal([0xff, 0x1f, 1, 9]) == nil)
        #expect(refusal([0x81, 0x20, 1, 9]) == .outsidePage)
        #expect(refusal([4, 5, 1, 2, 3, 4, 5], size: 8) == .outsidePage)
    }

    /// Encodes as QEMU does, byte by byte.
    private static func encoded(_ old: [UInt8], _ new: [UInt8]) -> [UInt8] {
        var data: [UInt8] = []
        func length(_ value: Int) {
            if value < 0x80 {
                data.append(UInt8(value))
            } else {
                data += [UInt8(value & 0x7f | 0x80), UInt8(value >> 7)]
            }
        }
        var at = 0
        while at < new.count {
            let kept = at
            while at < new.count, old[at] == new[at] { at += 1 }
            guard at < new.count else { break }
            length(at - kept)
            let changed = at
            while at < new.count, old[at] != new[at] { at += 1 }
            length(at - changed)
            data += new[changed..<at]
        }
        return data
    }

    @Test("Random changes come back", arguments: 1...20 as ClosedRange<UInt64>)
    func random(seed: UInt64) throws {
        var random = Seed(seed)
        let old = (0..<4096).map { _ in UInt8(random.below(256)) }
        var new = old
        for _ in 0..<random.below(40) {
            let start = random.below(4096)
            for at in start..<min(4096, start + 1 + random.below(200)) { new[at] = UInt8(random.below(256)) }
        }
        #expect(try Self.applied(Self.encoded(old, new), to: old) == new)
    }

    @Test func noiseNeverTraps() {
        var refused = 0
        for seed in 1...2000 as ClosedRange<UInt64> {
            var random = Seed(seed)
            let data = (0..<random.below(40)).map { _ in UInt8(random.below(256) >> random.below(8)) }
            if refusal(data, size: random.below(64)) != nil { refused += 1 }
        }
        #expect(refused > 1000 && refused < 2000)
    }
}
