import ApusContent
import ApusMemory
import ApusSystem
import Foundation
import Testing

/// A VM's memory: page n where `memory[i] == n`, zeros where nil.
typealias Memory = [Int?]

extension SnapshotStore {
    mutating func put(_ vm: String, _ memory: Memory, _ key: ContentKey = testKey(), compressible: Bool = false)
        throws(StoreError)
    {
        try begin(vm: vm, key, pageCount: PageNumber(memory.count))
        for (number, content) in memory.enumerated() {
            guard let content else { continue }
            try add(PageNumber(number), page(content, compressible: compressible).rawBytes)
        }
        try finish()
    }

    /// How many pages of the VM can be read back; nil: there is no such snapshot. Every wrong page is an issue.
    mutating func readable(
        _ vm: String, _ memory: Memory, _ key: ContentKey = testKey(), compressible: Bool = false
    ) throws -> Int? {
        guard let snapshot = try snapshot(of: vm, key) else { return nil }
        return try ApusContentTests.readable(snapshot, memory, key, compressible: compressible)
    }
}

func readable(
    _ snapshot: Snapshot, _ memory: Memory, _ key: ContentKey = testKey(), compressible: Bool = false
) throws -> Int {
    var reader = SnapshotReader(snapshot, key)
    var buffer = PageBuffer(byteCount: 4096)
    var right = 0
    for (number, content) in memory.enumerated() {
        guard let content else {
            #expect(snapshot.hint(of: PageNumber(number)) == 0)
            continue
        }
        let bytes = page(content, compressible: compressible)
        let run = ContentRun(at: PageNumber(number), pages: 1, digest: key.digest(of: bytes.rawBytes))
        let proved = reader?.prove(run, into: &buffer, at: 0)
        guard proved == true else { continue }
        #expect(snapshot.hint(of: PageNumber(number)) == key.hint(of: bytes.rawBytes))
        if buffer.bytes.equals(bytes.rawBytes) { right += 1 } else { Issue.record("page \(number) is wrong") }
    }
    return right
}

@Suite struct SnapshotTests {
    private let folder: TestFolder
    private let memory: Memory = (0..<300).map { $0 % 7 == 0 ? nil : $0 }
    private var pages: Int { memory.count { $0 != nil } }

    init() throws { folder = try TestFolder() }

    @Test(arguments: [true, false]) func whatWasStoredIsReadBack(compressible: Bool) throws {
        var store = try SnapshotStore.open(path: folder.file("store"), bytesMax: 1 << 30)
        try store.put("vm", memory, compressible: compressible)
        let first = try store.readable("vm", memory, compressible: compressible)
        #expect(first == pages)
        let bytes = store.byteCount
        let raw = UInt64(pages * 4096)
        #expect(compressible ? bytes < raw / 2 : bytes < raw + raw / 20)
    }

    @Test func itOutlivesTheAgent() throws {
        do {
            var store = try SnapshotStore.open(path: folder.file("store"), bytesMax: 1 << 30)
            try store.put("vm", memory)
        }
        var store = try SnapshotStore.open(path: folder.file("store"), bytesMax: 1 << 30)
        let count = try store.readable("vm", memory)
        #expect(count == pages)
        let all = try store.snapshots()
        #expect(all.map(\.vm) == ["vm"] && all.first?.pageCount == 300)
    }

    @Test func contentIsStoredOnce() throws {
        var store = try SnapshotStore.open(path: folder.file("store"), bytesMax: 1 << 30)
        try store.put("vm", memory)
        let (bytes, distinct) = (store.byteCount, store.pages)
        // A sibling, a second round of the same VM, and pages that are many times the same.
        try store.put("sibling", memory + [1, 1, 1, 2])
        try store.put("vm", memory)
        let (after, distinctAfter) = (store.byteCount, store.pages)
        #expect(distinct == pages && distinctAfter == pages)
        #expect(after < bytes + 40_000, "only manifests may be added")
        let sibling = try store.readable("sibling", memory + [1, 1, 1, 2])
        #expect(sibling == pages + 4)
    }

    @Test func tenantsShareNothing() throws {
        var store = try SnapshotStore.open(path: folder.file("store"), bytesMax: 1 << 30)
        try store.put("vm", memory, testKey("a"))
        try store.put("vm", memory, testKey("b"))
        let distinct = store.pages
        #expect(distinct == pages * 2)
        let a = try store.readable("vm", memory, testKey("a"))
        let stranger = try store.readable("vm", memory, testKey("c"))
        #expect(a == pages && stranger == nil)
        // Even with the other's snapshot in hand, nothing is proved to a stranger.
        let snapshot = try #require(try store.snapshot(of: "vm", testKey("b")))
        var reader = SnapshotReader(snapshot, testKey("a"))
        var buffer = PageBuffer(byteCount: 4096)
        let run = ContentRun(at: 1, pages: 1, digest: testKey("a").digest(of: page(1).rawBytes))
        let isProved = reader?.prove(run, into: &buffer, at: 0)
        #expect(isProved == nil)
    }

    /// Over the borders of chunks, of pages that an older snapshot has stored in another order, up to a page of zeros and to the
    /// snapshot's end.
    @Test func runsAreReadBackWholeOrNotAtAll() throws {
        var store = try SnapshotStore.open(path: folder.file("store"), bytesMax: 1 << 30)
        try store.put("other", (0..<100).map { 99 - $0 })
        let memory: Memory = (0..<200).map { $0 == 150 ? nil : $0 }
        try store.put("vm", memory)
        let snapshot = try #require(try store.snapshot(of: "vm", testKey()))
        guard var reader = SnapshotReader(snapshot, testKey()) else { throw StoreError.busy }
        var buffer = PageBuffer(byteCount: 17 * 4096)
        for first in 0..<200 {
            for pages in [2, 7, 16] {
                let bytes = (first..<first + pages).flatMap { $0 == 150 ? zeroPage : page($0) }
                let run = ContentRun(
                    at: PageNumber(first), pages: pages, digest: testKey().digest(of: bytes.rawBytes))
                let isProved = reader.prove(run, into: &buffer, at: 4096)
                #expect(isProved == (first + pages <= 200 && !(first..<first + pages).contains(150)))
                if isProved {
                    let isRight = buffer.bytes.extracting(4096..<(pages + 1) * 4096).equals(bytes.rawBytes)
                    #expect(isRight)
                }
            }
        }
        // Content that is almost there, and a run that no number of pages reaches.
        let almost = (10..<25).flatMap { page($0) } + page(26)
        for run in [
            ContentRun(at: 10, pages: 16, digest: testKey().digest(of: almost.rawBytes)),
            ContentRun(at: .max, pages: 16, digest: testKey().digest(of: almost.rawBytes)),
        ] {
            let isProved = reader.prove(run, into: &buffer, at: 0)
            #expect(!isProved)
        }
    }

    @Test func anUnfinishedSnapshotLeavesTheOlderOne() throws {
        var store = try SnapshotStore.open(path: folder.file("store"), bytesMax: 1 << 30)
        try store.put("vm", memory)
        try store.begin(vm: "vm", testKey(), pageCount: 100)
        for number in 0..<50 { try store.add(PageNumber(number), page(9000 + number).rawBytes) }
        do throws(StoreError) {
            try store.begin(vm: "other", testKey(), pageCount: 1)
            Issue.record("two at once")
        } catch { #expect(error == .busy) }
        store.abandon()
        let count = try store.readable("vm", memory)
        #expect(count == pages)
        let names = try FileManager.default.contentsOfDirectory(atPath: folder.file("store"))
        #expect(!names.contains { $0.hasSuffix(".new") })
        let distinct = store.pages
        #expect(distinct == pages, "what was abandoned is given back")
    }

    @Test func twoAgentsDoNotShareAStore() throws {
        let first = try SnapshotStore.open(path: folder.file("store"), bytesMax: 1 << 30)
        let path = folder.file("store")
        #expect(throws: StoreError.inUse(path: path)) { try Self.tryToOpen(path) }
        #expect(first.bytesMax == 1 << 30)
    }

    private static func tryToOpen(_ path: String) throws(StoreError) {
        let store = try SnapshotStore.open(path: path, bytesMax: 1 << 30)
        #expect(store.path == path)
    }

    @Test func aPeersPagesAreFoundInPlaceFirst() throws {
        var peer = PeerPages(pageCount: 10)
        peer?.set(3, 77)
        peer?.set(5, 77)
        peer?.set(6, 88)
        let found = [(77, 5), (77, 3), (77, 9), (88, 100), (99, 1)].map { hint, page in
            peer?.find(hint, at: page) ?? nil
        }
        #expect(found == [5, 3, 3, 6, nil])
    }

    // MARK: Room

    @Test func theOldestGoesWhenItIsFull() throws {
        // Room for two and a half.
        var store = try SnapshotStore.open(path: folder.file("store"), bytesMax: 3_000_000)
        func image(_ vm: Int) -> Memory { (0..<256).map { vm * 1000 + $0 } }
        try store.put("vm 1", image(1))
        Self.wait()
        try store.put("vm 2", image(2))
        Self.wait()
        // The first is used again, so the second is now the one used longest ago.
        _ = try store.snapshot(of: "vm 1", testKey())
        Self.wait()
        try store.put("vm 3", image(3))
        let counts = [
            try store.readable("vm 1", image(1)), try store.readable("vm 2", image(2)),
            try store.readable("vm 3", image(3)),
        ]
        #expect(counts == [256, nil, 256])
        let bytes = store.byteCount
        #expect(bytes <= 3_000_000)
    }

    /// Times of files are as coarse as the kernel's tick.
    private static func wait() { pause(ms: 20) }

    @Test func whatIsTooLargeAloneIsRefusedAndTheStoreGoesOn() throws {
        var store = try SnapshotStore.open(path: folder.file("store"), bytesMax: 1_000_000)
        do throws(StoreError) {
            try store.put("large", (0..<400).map { $0 })
            Issue.record("it found room")
        } catch { #expect(error == .full(bytesMax: 1_000_000)) }
        try store.put("small", (1000..<1100).map { $0 })
        let count = try store.readable("small", (1000..<1100).map { $0 })
        #expect(count == 100)
    }

    /// A snapshot that is being written keeps the old pages it builds on, whatever has to go for it.
    @Test func roomIsNotMadeOfWhatIsBeingWritten() throws {
        var store = try SnapshotStore.open(path: folder.file("store"), bytesMax: 3_000_000)
        let shared: Memory = (0..<300).map { $0 }
        let old: Memory = shared + (9000..<9300).map { $0 }
        let new: Memory = shared + (5000..<5300).map { $0 }
        try store.put("old", old)
        try store.put("new", new)
        let counts = [try store.readable("old", old), try store.readable("new", new)]
        #expect(counts == [nil, 600])
    }

    @Test(.enabled(if: isRoot)) func aFullDiskIsToldAndTheStoreGoesOn() throws {
        let small = try TestFolder(byteCount: 4 << 20)
        var store = try SnapshotStore.open(path: small.file("store"), bytesMax: 1 << 30)
        let kept: Memory = (0..<300).map { $0 }
        try store.put("kept", kept)
        do throws(StoreError) {
            try store.put("large", (1000..<3000).map { $0 })
            Issue.record("there was room")
        } catch {
            guard case .noRoom(let reason) = error else { throw error }
            #expect(reason.isNoRoom)
        }
        let count = try store.readable("kept", kept)
        #expect(count == 300)
        try store.collect()
        try store.put("next", (4000..<4200).map { $0 })
        let next = try store.readable("next", (4000..<4200).map { $0 })
        #expect(next == 200)
    }

    @Test func segmentsThatAreMostlyUnusedAreCopied() throws {
        var store = try SnapshotStore.open(path: folder.file("store"), bytesMax: 1 << 30)
        let both: Memory = (0..<400).map { $0 }
        let few: Memory = (0..<400).map { $0 % 8 == 0 ? $0 : nil }
        try store.put("both", both)
        try store.put("few", few)
        let before = store.byteCount
        let open = try #require(try store.snapshot(of: "both", testKey()))
        let all = try store.snapshots()
        try store.drop(try #require(all.first { $0.vm == "both" }))
        let (after, distinct) = (store.byteCount, store.pages)
        #expect(after < before / 4 && distinct == 50)
        let count = try store.readable("few", few)
        #expect(count == 50)
        // Whoever reads the old one goes on reading.
        #expect(try readable(open, both) == 400)
    }

    @Test func wipedPagesAreNowhere() throws {
        var store = try SnapshotStore.open(path: folder.file("store"), bytesMax: 1 << 30)
        let secret: Memory = (0..<64).map { $0 }
        let kept: Memory = (32..<128).map { $0 }
        try store.put("secret", secret)
        try store.put("kept", kept)
        // A link keeps what unlink alone would hide.
        let names = try FileManager.default.contentsOfDirectory(atPath: folder.file("store"))
        for name in names where name.hasSuffix(".segment") || name.hasSuffix(".manifest") {
            try FileManager.default.linkItem(
                atPath: folder.file("store/\(name)"), toPath: folder.file("linked-\(name)"))
        }
        let all = try store.snapshots()
        try store.drop(try #require(all.first { $0.vm == "secret" }), wipes: true)
        let count = try store.readable("kept", kept)
        #expect(count == 96)
        var files = folder.names.filter { $0.hasPrefix("linked-") }
        files += try FileManager.default.contentsOfDirectory(atPath: folder.file("store")).map { "store/\($0)" }
        let needle = Data(page(5)[100..<200])
        let digest = testKey().hint(of: page(5).rawBytes)
        let name = Data(littleEndian(digest))
        for file in files {
            let bytes = try folder.bytes(file)
            #expect(bytes.range(of: needle) == nil, "\(file) holds a page")
            #expect(bytes.range(of: name) == nil, "\(file) holds its name")
        }
    }
}
