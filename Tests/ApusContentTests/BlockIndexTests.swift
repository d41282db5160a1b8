import ApusContent
import ApusSystem
import Foundation
import Testing

/// An image of blocks: page n where `blocks[i] == n`, zeros where nil.
private func makeImage(_ folder: TestFolder, _ blocks: [Int?], name: String = "disk", old: Bool = true) throws {
    var data = Data()
    for block in blocks { data.append(contentsOf: block.map { page($0) } ?? zeroPage) }
    try folder.put(name, data)
    if old { age(folder.file(name)) }
}

@Suite struct BlockIndexTests {
    private let folder: TestFolder
    private let key = testKey()
    private var order: IndexOrder {
        IndexOrder(image: folder.file("disk"), sidecar: folder.file("index"), key: key)
    }

    init() throws { folder = try TestFolder() }

    private func open(_ order: IndexOrder? = nil, mayBeStale: Bool = false) throws -> (BlockIndex, IndexOrigin) {
        let opened = try BlockIndex.open(order ?? self.order, mayBeStale: mayBeStale)
        return try #require(opened)
    }

    private func find(_ index: BlockIndex, _ number: Int) -> UInt32? {
        index.block(of: key.hint(of: page(number).rawBytes))
    }

    @Test func everyBlockIsFoundWhereItIs() throws {
        // Zeros, repeated blocks, an end that is no whole block, three extents.
        var blocks: [Int?] = (0..<600).map { $0 % 5 == 0 ? nil : $0 % 100 }
        blocks += [1000, 1001]
        try makeImage(folder, blocks)
        try folder.put("disk", folder.bytes("disk") + Data(repeating: 9, count: 100))
        age(folder.file("disk"))
        let (index, origin) = try open()
        #expect(origin == .built(because: .missing))
        #expect(index.blocks == 82 && index.stride == 1 && index.unreadableExtents == 0)
        for number in 0..<100 where number % 5 != 0 { #expect(find(index, number) == UInt32(number)) }
        #expect(find(index, 1001) == 601)
        #expect(find(index, 5) == nil && find(index, 77_777) == nil)
        #expect(index.block(of: key.hint(of: zeroPage.rawBytes)) == nil)
    }

    @Test func theSecondTimeItIsLoaded() throws {
        try makeImage(folder, (0..<700).map { $0 })
        let (built, _) = try open()
        let (loaded, origin) = try open()
        #expect(origin == .loaded)
        #expect(loaded.blocks == built.blocks)
        for number in 0..<700 { #expect(find(loaded, number) == UInt32(number)) }
    }

    /// A file written to a moment before may be written to again without its time changing.
    @Test func aFreshImageIsNotTrusted() throws {
        try makeImage(folder, [1, 2, 3], old: false)
        _ = try open()
        #expect(try open().1 == .built(because: .imageChanged))
    }

    @Test func aChangedImageIsReadAgain() throws {
        try makeImage(folder, (0..<300).map { $0 })
        _ = try open()
        try folder.put("disk", folder.bytes("disk") + Data(page(5000)))
        let (stale, staleOrigin) = try open(mayBeStale: true)
        #expect(staleOrigin == .loaded && find(stale, 5000) == nil && find(stale, 299) == 299)
        // Foundation writes a new file in place of the old one here; then one is changed in place.
        let handle = try #require(FileHandle(forWritingAtPath: folder.file("disk")))
        try handle.write(contentsOf: Data(page(6000)))
        try handle.close()
        let (index, origin) = try open()
        #expect(origin == .built(because: .imageChanged))
        #expect(find(index, 5000) == 300 && find(index, 6000) == 0 && find(index, 0) == nil)
    }

    @Test func anotherImageUnderTheSamePathIsSeen() throws {
        try makeImage(folder, [1, 2, 3])
        _ = try open()
        try makeImage(folder, [4, 5, 6], name: "other")
        try FileManager.default.removeItem(atPath: folder.file("disk"))
        try FileManager.default.moveItem(atPath: folder.file("other"), toPath: folder.file("disk"))
        let (index, origin) = try open()
        #expect(origin == .built(because: .otherImage))
        #expect(find(index, 4) == 0 && find(index, 1) == nil)
    }

    @Test func aCutImageIsSeen() throws {
        try makeImage(folder, (0..<300).map { $0 })
        _ = try open()
        #expect(unsafe truncate(folder.file("disk"), 4096 * 10) == 0)
        age(folder.file("disk"))
        let (index, origin) = try open()
        #expect(origin == .built(because: .imageChanged))
        #expect(index.blocks == 10)
    }

    @Test func whatIsNoImageIsRefused() throws {
        func fault(_ path: String) -> IndexError? {
            var order = order
            order.image = path
            do throws(IndexError) {
                _ = try BlockIndex.open(order)
                return nil
            } catch { return error }
        }
        guard case .image(_, let error) = fault(folder.file("none")) else {
            Issue.record("a missing image was accepted")
            return
        }
        #expect(error.isMissing)
        #expect(fault(folder.path) == .notAFile(path: folder.path))
        // Opening a pipe must not wait for whoever writes to it.
        #expect(unsafe mkfifo(folder.file("pipe"), 0o600) == 0)
        #expect(fault(folder.file("pipe")) == .notAFile(path: folder.file("pipe")))
        #expect(fault(folder.file("none"))?.description.contains("none") == true)
    }

    @Test func anEmptyImageHasAnEmptyIndex() throws {
        try makeImage(folder, [])
        #expect(try open().0.blocks == 0)
        #expect(try open().1 == .loaded)
    }

    /// The clusters of a real qcow2 are where a plain file would have them: aligned.
    @Test func pagesAreFoundInAQcow2() throws {
        try makeImage(folder, (0..<1000).map { $0 % 3 == 0 ? nil : $0 }, name: "raw")
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/qemu-img")
        process.arguments = ["convert", "-O", "qcow2", folder.file("raw"), folder.file("disk")]
        try process.run()
        process.waitUntilExit()
        try #require(process.terminationStatus == 0)
        let (index, _) = try open()
        let file = try Descriptor.open(folder.file("disk"), .read)
        var buffer = PageBuffer(byteCount: 4096)
        for number in 0..<1000 where number % 3 != 0 {
            let block = try #require(find(index, number), "page \(number) is not found")
            _ = try file.read(at: UInt64(block) * 4096, into: &buffer, 0..<4096)
            let isRight = buffer.bytes.equals(page(number).rawBytes)
            #expect(isRight)
        }
    }

    // MARK: Sidecars

    /// Every byte may be wrong: the sidecar is made again, or what was wrong did not matter.
    @Test func aDamagedSidecarIsMadeAgain() throws {
        try makeImage(folder, (0..<300).map { $0 })
        _ = try open()
        let good = try folder.bytes("index")
        for at in Array(0..<128) + Array(stride(from: 128, to: good.count, by: 61)) {
            var bad = good
            bad[at] ^= 0x40
            try folder.put("index", bad)
            let (index, origin) = try open()
            guard case .built(let why) = origin else {
                Issue.record("byte \(at) did not matter")
                return
            }
            switch why {
            case .corrupt, .otherFormat: break
            default: Issue.record("byte \(at): \(why)")
            }
            #expect(index.blocks == 300)
        }
        try folder.put("index", good.prefix(1000))
        #expect(try open().0.blocks == 300)
        #expect(try open().1 == .loaded)
    }

    @Test func anOlderFormatIsMadeAgain() throws {
        try makeImage(folder, [1])
        _ = try open()
        var bytes = try folder.bytes("index")
        bytes[8] = 0
        try folder.put("index", bytes)
        #expect(try open().1 == .built(because: .otherFormat(version: 0)))
    }

    @Test func anotherKeysSidecarIsOfNoUse() throws {
        try makeImage(folder, [1])
        _ = try open()
        var order = order
        order.key = testKey("another tenant")
        #expect(try open(order).1 == .built(because: .otherKey))
    }

    @Test func aSidecarThatCannotBeWrittenIsTold() throws {
        try makeImage(folder, [1])
        var order = order
        order.sidecar = folder.file("none/index")
        #expect(throws: IndexError.self) { try BlockIndex.open(order) }
    }

    @Test(.enabled(if: isRoot)) func aFullDiskIsTold() throws {
        let small = try TestFolder(byteCount: 16 << 10)
        try makeImage(folder, (0..<4096).map { $0 })
        var order = order
        order.sidecar = small.file("index")
        do throws(IndexError) {
            _ = try BlockIndex.open(order)
            Issue.record("there was room")
        } catch {
            guard case .sidecar(_, let reason) = error else { throw error }
            #expect(reason.isNoRoom)
        }
    }

    // MARK: Building

    @Test func whatWasReadBeforeACancelIsUsed() throws {
        try makeImage(folder, (0..<256 * 6).map { $0 })
        var asked = 0
        let cancelled = try BlockIndex.open(order) {
            asked += 1
            return asked > 4
        }
        #expect(cancelled == nil)
        // A kill in the middle of writing: the last extent is not whole.
        let part = try folder.bytes("index.part")
        try folder.put("index.part", part.prefix(part.count - 100))
        let (index, origin) = try open()
        #expect(origin == .resumed(extents: 3))
        for number in 0..<256 * 6 { #expect(find(index, number) == UInt32(number)) }
        #expect(try open().1 == .loaded)
    }

    /// An index begun before a write must not pass for newer than it.
    @Test func aResumedIndexOfAChangedImageIsNotTrustedNextTime() throws {
        try makeImage(folder, (0..<256 * 3).map { $0 })
        var asked = 0
        _ = try BlockIndex.open(order) {
            asked += 1
            return asked > 1
        }
        let handle = try #require(FileHandle(forWritingAtPath: folder.file("disk")))
        try handle.write(contentsOf: Data(page(6000)))
        try handle.close()
        age(folder.file("disk"), seconds: 60)
        #expect(try open().1 == .resumed(extents: 1))
        #expect(try open().1 == .built(because: .imageChanged))
    }

    /// A terabyte of holes costs nothing; blocks behind it are found.
    @Test func holesAreNotRead() throws {
        try makeImage(folder, [1, 2])
        let file = try Descriptor.open(folder.file("disk"), .readWrite)
        try file.write(page(3).rawBytes, at: 1 << 40)
        age(folder.file("disk"))
        let began = Instant.now()
        let (index, _) = try open()
        #expect(Instant.now().ms(since: began) < 2000)
        #expect(index.blocks == 3)
        #expect(find(index, 3) == 1 << 28)
    }

    @Test func alargeImageIsSampledWithinItsCap() throws {
        try makeImage(folder, (0..<256 * 12).map { $0 })
        var order = order
        order.tableBytesMax = 4 * 256 * HintTable.bytesPerEntry
        let (index, _) = try open(order)
        #expect(index.stride == 3 && index.blocks == 4 * 256)
        #expect(find(index, 256 * 3 + 5) == 256 * 3 + 5 && find(index, 256 + 5) == nil)
        // With more memory it is made anew.
        #expect(try open().1 == .built(because: .otherStride))
    }

    @Test func readingIsHeldToItsRate() throws {
        try makeImage(folder, (0..<256 * 8).map { $0 })
        let file = try Descriptor.open(folder.file("disk"), .readWrite)
        try file.sync()
        #expect(posix_fadvise(file.number, 0, 0, POSIX_FADV_DONTNEED) == 0)
        var order = order
        order.bytesPerS = 20e6
        let began = Instant.now()
        _ = try open(order)
        let ms = Instant.now().ms(since: began)
        #expect(ms > 380, "8 MiB at 20 MB/s take 419 ms, not \(ms)")
    }

    @Test func thePageCacheStaysAsItWas() throws {
        try makeImage(folder, (0..<512).map { $0 })
        let file = try Descriptor.open(folder.file("disk"), .readWrite)
        file.expectNoOrder()
        try file.sync()
        #expect(posix_fadvise(file.number, 0, 0, POSIX_FADV_DONTNEED) == 0)
        var buffer = PageBuffer(byteCount: 1 << 20)
        _ = try file.read(at: 0, into: &buffer, 0..<4096 * 8)
        let (_, _) = try open()
        let hot = try file.readAside(at: 0, into: &buffer, 0..<4096 * 8)
        let cold = try file.readAside(at: 1 << 20, into: &buffer, 0..<1 << 20)
        #expect(hot.byteCount == 4096 * 8 && hot.fromDisk == 0, "what was in the cache was thrown out")
        #expect(cold.byteCount == 1 << 20 && cold.fromDisk > 0, "what was not in the cache is in it now")
    }

    @Test func anIdleThreadGivesWayOnDisk() throws {
        let ionice = "/usr/bin/ionice"
        try #require(FileManager.default.isExecutableFile(atPath: ionice))
        let (named, asked) = (Monitor<String?>(nil), Latch())
        let thread = try WorkerThread("idle", nice: WorkerThread.idle) {
            WorkerThread.giveWayOnDisk()
            named.update { $0 = ProcFile.link("/proc/thread-self") }
            asked.wait()
        }
        let link = try #require(named.wait(ms: 5000) { $0 })
        let process = Process()
        process.executableURL = URL(fileURLWithPath: ionice)
        process.arguments = ["-p", String(link.split(separator: "/").last ?? "")]
        let pipe = Pipe()
        process.standardOutput = pipe
        try process.run()
        process.waitUntilExit()
        let answer = String(decoding: pipe.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        asked.open()
        thread.join()
        #expect(answer.hasPrefix("idle"))
    }
}
