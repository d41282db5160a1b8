import ApusContent
import ApusMemory
import ApusSystem
import Foundation
import Testing

@Suite struct SnapshotFaultTests {
    private let folder: TestFolder
    private let memory: Memory = (0..<200).map { $0 }

    init() throws { folder = try TestFolder() }

    private func filled() throws -> TestFolder {
        let made = try TestFolder()
        var store = try SnapshotStore.open(path: made.path, bytesMax: 1 << 30)
        try store.put("vm", memory)
        return made
    }

    /// The store is killed after every page of a second snapshot, and during the collection behind it.
    @Test func aKillAtAnyPointLosesNothingThatWasFinished() throws {
        let place = try TestFolder()
        var store = try SnapshotStore.open(path: place.path, bytesMax: 1 << 30)
        try store.put("first", memory)
        var images: [TestFolder] = []
        try store.begin(vm: "second", testKey(), pageCount: 100)
        for number in 0..<100 {
            try store.add(PageNumber(number), page(500 + number).rawBytes)
            if number % 9 == 0 { images.append(try place.copied()) }
        }
        try store.finish()
        images.append(try place.copied())
        for (index, image) in images.enumerated() {
            var again = try SnapshotStore.open(path: image.path, bytesMax: 1 << 30)
            let first = try again.readable("first", memory)
            #expect(first == 200)
            let second = try again.readable("second", (500..<600).map { $0 })
            #expect(second == (index == images.count - 1 ? 100 : nil))
            try again.put("third", (700..<750).map { $0 })
            let third = try again.readable("third", (700..<750).map { $0 })
            #expect(third == 50)
        }
    }

    /// A collection is killed when it has copied what it keeps and removed nothing, or only some of it.
    @Test func aKilledCollectionLosesNothing() throws {
        let place = try TestFolder()
        let few: Memory = (0..<400).map { $0 % 8 == 0 ? $0 : nil }
        let before: TestFolder
        do {
            var store = try SnapshotStore.open(path: place.path, bytesMax: 1 << 30)
            try store.put("all", (0..<400).map { $0 })
            try store.put("few", few)
            try store.drop(try #require(try store.snapshots().first { $0.vm == "few" }))
            try store.put("few", few)
            before = try place.copied()
            try store.drop(try #require(try store.snapshots().first { $0.vm == "all" }))
        }
        let manifest = try #require(place.names.first { $0.hasSuffix(".manifest") })
        let old = before.names.filter { !$0.hasSuffix(".manifest") }
        #expect(!old.filter { !place.names.contains($0) }.isEmpty, "nothing was copied")
        for removed in 0...old.count {
            let killed = try place.copied()
            for name in old.dropFirst(removed) where !killed.names.contains(name) {
                try killed.put(name, before.bytes(name))
            }
            var store = try SnapshotStore.open(path: killed.path, bytesMax: 1 << 30)
            let count = try store.readable("few", few)
            #expect(count == 50, "\(manifest), \(removed) removed")
            try store.collect()
            let pages = store.pages
            #expect(pages == 50)
        }
    }

    /// The machine dies with the last segment half written: cut anywhere, and with rubbish behind the cut.
    @Test(arguments: [false, true]) func aTornTailIsCutOff(hasRubbish: Bool) throws {
        let made = try filled()
        let segment = try #require(made.names.first { $0.hasSuffix(".segment") })
        let whole = try made.bytes(segment)
        for cut in stride(from: 0, to: whole.count, by: whole.count / 23) {
            let torn = try made.copied()
            try torn.put(segment, whole.prefix(cut) + (hasRubbish ? Data(repeating: 0x5a, count: 5000) : Data()))
            var store = try SnapshotStore.open(path: torn.path, bytesMax: 1 << 30)
            let count = try store.readable("vm", memory) ?? -1
            // Whole chunks of sixteen before the cut.
            #expect(count >= max(0, cut / (16 * 4200) * 16 - 16) && count <= cut / 4096 + 16)
            let repairs = store.repairs
            #expect(repairs.count == 1)
            try store.put("vm", memory)
            let again = try store.readable("vm", memory)
            #expect(again == 200)
        }
    }

    /// Bits rot in segments: pages are missing then, and never wrong.
    @Test func rottenContentIsRefused() throws {
        let made = try filled()
        let segment = try #require(made.names.first { $0.hasSuffix(".segment") })
        // A new start makes the index, and with it the segment is not read as a whole again.
        do {
            var store = try SnapshotStore.open(path: made.path, bytesMax: 1 << 30)
            try store.collect()
        }
        let whole = try made.bytes(segment)
        var random = SystemRandomNumberGenerator()
        for _ in 0..<60 {
            var bad = whole
            for _ in 0..<3 { bad[Int.random(in: 16..<bad.count, using: &random)] ^= UInt8.random(in: 1...255) }
            try made.put(segment, bad)
            var store = try SnapshotStore.open(path: made.path, bytesMax: 1 << 30)
            let count = try store.readable("vm", memory) ?? -1
            #expect(count >= 200 - 48 && count < 200)
            // What has rotted is stored anew when it comes again.
            try store.put("again", memory)
            let again = try store.readable("again", memory)
            #expect(again == 200)
            for name in made.names where name.hasPrefix("00000002") {
                try FileManager.default.removeItem(atPath: made.file(name))
            }
        }
    }

    @Test func aDamagedIndexIsMadeAgain() throws {
        let made = try filled()
        _ = try SnapshotStore.open(path: made.path, bytesMax: 1 << 30)
        let index = try #require(made.names.first { $0.hasSuffix(".index") })
        let whole = try made.bytes(index)
        for at in [0, 9, 17, 30, whole.count - 1] {
            var bad = whole
            bad[at] ^= 1
            try made.put(index, bad)
            var store = try SnapshotStore.open(path: made.path, bytesMax: 1 << 30)
            let count = try store.readable("vm", memory)
            #expect(count == 200)
            let repairs = store.repairs
            #expect(repairs.count == 1)
        }
    }

    @Test func aDamagedManifestIsRemovedAndSaidSo() throws {
        let made = try filled()
        let manifest = try #require(made.names.first { $0.hasSuffix(".manifest") })
        var bytes = try made.bytes(manifest)
        bytes[3] ^= 1
        try made.put(manifest, bytes)
        var store = try SnapshotStore.open(path: made.path, bytesMax: 1 << 30)
        let repairs = store.repairs
        #expect(repairs.contains { $0.contains("removed") })
        let count = try store.readable("vm", memory)
        #expect(count == nil)
        try store.collect()
        let pages = store.pages
        #expect(pages == 0)
    }

    /// A stripe of a manifest rots: its pages are not offered, and the next collection gives the snapshot up.
    @Test func aDamagedStripeIsNotOffered() throws {
        let made = try filled()
        let manifest = try #require(made.names.first { $0.hasSuffix(".manifest") })
        var bytes = try made.bytes(manifest)
        bytes[512 + 100] ^= 1
        try made.put(manifest, bytes)
        var store = try SnapshotStore.open(path: made.path, bytesMax: 1 << 30)
        let count = try store.readable("vm", memory)
        #expect(count == 200 - 64)
        try store.collect()
        let gone = try store.readable("vm", memory)
        #expect(gone == nil)
    }

    /// The disk answers with errors: a folder where a file should be gives one for every read.
    @Test func aDiskErrorIsToldAndLosesNothing() throws {
        let made = try filled()
        let manifest = try #require(made.names.first { $0.hasSuffix(".manifest") })
        var store = try SnapshotStore.open(path: made.path, bytesMax: 1 << 30)
        let good = try made.bytes(manifest)
        try FileManager.default.removeItem(atPath: made.file(manifest))
        try FileManager.default.createDirectory(atPath: made.file(manifest), withIntermediateDirectories: false)
        do throws(StoreError) {
            try store.collect()
            Issue.record("nothing was noticed")
        } catch {
            guard case .disk = error else { throw error }
            #expect(error.description.contains("disk fails"))
        }
        try FileManager.default.removeItem(atPath: made.file(manifest))
        try made.put(manifest, good)
        let count = try store.readable("vm", memory)
        #expect(count == 200, "an error is no reason to give pages back")
    }

    /// A kill between the removal of a segment and of its index: the number is given again, the index must not be.
    @Test func anIndexWithoutItsSegmentIsRemoved() throws {
        let made = try filled()
        _ = try SnapshotStore.open(path: made.path, bytesMax: 1 << 30)
        for name in made.names where name.hasSuffix(".segment") || name.hasSuffix(".manifest") {
            try FileManager.default.removeItem(atPath: made.file(name))
        }
        try #require(made.names.contains { $0.hasSuffix(".index") })
        let other: Memory = (3000..<3100).map { $0 }
        do {
            var store = try SnapshotStore.open(path: made.path, bytesMax: 1 << 30)
            let pages = store.pages
            #expect(pages == 0)
            try store.put("other", other)
        }
        var store = try SnapshotStore.open(path: made.path, bytesMax: 1 << 30)
        let count = try store.readable("other", other)
        #expect(count == 100)
    }

    /// Chunks that a hostile hand has made: no length is believed.
    @Test func hostileChunksAreRefused() throws {
        let made = try filled()
        let segment = try #require(made.names.first { $0.hasSuffix(".segment") })
        let whole = try made.bytes(segment)
        for (at, value) in [(12 + 16, 0xff), (13 + 16, 0xff), (14 + 16, 7), (17 + 16, 0xff), (23 + 16, 0xff)]
            as [(Int, UInt8)]
        {
            let bad = try made.copied()
            var bytes = whole
            bytes[at] = value
            // With a checksum that fits.
            let end = min(bytes.count, 16 + 24 + 16 * (40 + 4096))
            let sum = Checksum.of(Array(bytes[24..<end]).rawBytes)
            bytes.replaceSubrange(16..<24, with: littleEndian(sum))
            try bad.put(segment, bytes)
            var store = try SnapshotStore.open(path: bad.path, bytesMax: 1 << 30)
            let count = try store.readable("vm", memory)
            #expect(count == 0 || count == 16, "byte \(at): nothing behind a bad head is believed")
        }
    }
}
