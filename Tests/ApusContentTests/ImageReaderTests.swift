import ApusContent
import ApusMemory
import ApusSystem
import Foundation
import Testing

@Suite struct ImageReaderTests {
    private let folder: TestFolder
    private let key = testKey()

    init() throws {
        folder = try TestFolder()
        var data = Data()
        for number in 0..<2000 { data.append(contentsOf: page(number)) }
        try folder.put("disk", data)
    }

    private func reference(_ number: Int, at block: UInt32? = nil) -> ContentRun {
        run(number..<number + 1, at: block)
    }

    private func run(_ numbers: Range<Int>, at block: UInt32? = nil) -> ContentRun {
        ContentRun(
            at: block ?? UInt32(numbers.lowerBound), pages: numbers.count,
            digest: key.digest(of: numbers.flatMap { page($0) }.rawBytes))
    }

    private func prove(_ references: [ContentRun]) throws -> (proved: UInt64, pages: [UInt8]) {
        var reader = ImageReader(try ImageReader.openImage(folder.file("disk")), key)
        var pages = PageBuffer(byteCount: 64 * 4096)
        let proved = reader.prove(references.span, into: &pages)
        return (proved, pages.bytes.bytesCopied)
    }

    @Test(arguments: 0..<6) func anyBatchInAnyOrder(seed: Int) throws {
        var numbers: [Int] =
            switch seed {
            case 0: Array(100..<164)
            case 1: Array((100..<164).reversed())
            case 2: [7]
            case 3: (0..<64).map { $0 * 31 }
            case 4: Array(repeating: 9, count: 64)
            default: (0..<64).map { $0 * 7919 % 2000 }
            }
        if seed == 5 { numbers.swapAt(3, 60) }
        let (proved, pages) = try prove(numbers.map { reference($0) })
        #expect(proved == (numbers.count == 64 ? .max : 1))
        for (index, number) in numbers.enumerated() {
            #expect(Array(pages[index * 4096..<(index + 1) * 4096]) == page(number))
        }
    }

    @Test func onlyWhatIsRightIsProved() throws {
        let (proved, pages) = try prove([
            reference(5), reference(6, at: 7), reference(8), reference(9, at: 2000), reference(10, at: .max),
            reference(11, at: 1999), reference(1999),
        ])
        #expect(proved == 0b1000101)
        #expect(Array(pages[0..<4096]) == page(5) && Array(pages[6 * 4096..<7 * 4096]) == page(1999))
    }

    @Test func anotherTenantsDigestProvesNothing() throws {
        let stranger = ContentRun(at: 5, pages: 1, digest: testKey("another").digest(of: page(5).rawBytes))
        #expect(try prove([stranger]).proved == 0)
    }

    @Test func aCutOrReplacedImageRefuses() throws {
        let file = try ImageReader.openImage(folder.file("disk"))
        #expect(unsafe truncate(folder.file("disk"), 4096 * 10 + 5) == 0)
        var reader = ImageReader(file, key)
        var pages = PageBuffer(byteCount: 64 * 4096)
        let references = [reference(9), reference(10), reference(11)]
        let proved = reader.prove(references.span, into: &pages)
        #expect(proved == 1)
        try folder.put("disk", Data(repeating: 3, count: 4096 * 20))
        #expect(try prove(references).proved == 0)
    }

    /// Runs of all lengths, near and far, in any order, over each other and the same twice.
    @Test(arguments: 0..<20) func runsComeInTheOrderGiven(seed: Int) throws {
        var runs: [Range<Int>] = []
        var left = 64
        while left > 0 {
            let from = (runs.count + seed) * 7919 % (seed % 2 == 0 ? 100 : 1900)
            let pages = min((runs.count * 5 + seed * 3) % 16 + 1, left)
            runs.append(from..<from + pages)
            left -= pages
        }
        let (proved, pages) = try prove(runs.map { run($0) })
        let numbers = runs.flatMap(\.self)
        #expect(proved == .max)
        for (slot, number) in numbers.enumerated() {
            #expect(Array(pages[slot * 4096..<(slot + 1) * 4096]) == page(number))
        }
    }

    /// One bit of one page, and the run is refused, and no other.
    @Test(arguments: 0..<16) func aWrongPageRefusesItsRun(wrong: Int) throws {
        let file = try Descriptor.open(folder.file("disk"), .readWrite)
        var bytes = page(100 + wrong)
        bytes[wrong * 256] ^= 1
        try file.write(bytes.rawBytes, at: UInt64((100 + wrong) * 4096))
        let (proved, pages) = try prove([run(90..<100), run(100..<116), run(116..<120)])
        #expect(proved == 0x3ff | 0xf << 26)
        #expect(Array(pages[0..<10 * 4096]) == (90..<100).flatMap { page($0) })
        #expect(Array(pages[26 * 4096..<30 * 4096]) == (116..<120).flatMap { page($0) })
    }

    /// The digest of a run is that of as many pages: neither its beginning nor its pages one by one are proved by it.
    @Test func anotherLengthIsAnotherRun() throws {
        let whole = run(100..<104)
        #expect(try prove([ContentRun(at: 100, pages: 3, digest: whole.digest)]).proved == 0)
        #expect(try prove([ContentRun(at: 100, pages: 5, digest: whole.digest)]).proved == 0)
        #expect(try prove([ContentRun(at: 100, pages: 1, digest: whole.digest)]).proved == 0)
    }

    @Test func anImageThatEndsInTheMiddleOfARunRefusesIt() throws {
        #expect(unsafe truncate(folder.file("disk"), 4096 * 1995) == 0)
        let runs = [run(1980..<1990), run(1990..<1996), run(1994..<1995), run(1996..<2000)]
        #expect(try prove(runs).proved == 0x3ff | 1 << 16)
        #expect(try prove([run(0..<16, at: .max), run(0..<2, at: .max - 1), run(7..<9)]).proved == 0b11 << 18)
    }

    @Test func aHoleInARunReadsAsZeros() throws {
        try folder.put("disk", Data())
        #expect(unsafe truncate(folder.file("disk"), 4096 * 10) == 0)
        let file = try Descriptor.open(folder.file("disk"), .readWrite)
        for number in 0..<10 where number != 5 { try file.write(page(number).rawBytes, at: UInt64(number * 4096)) }
        let bytes = (0..<10).flatMap { $0 == 5 ? zeroPage : page($0) }
        let holed = ContentRun(at: 0, pages: 10, digest: key.digest(of: bytes.rawBytes))
        let (proved, pages) = try prove([run(0..<10), holed])
        #expect(proved == 0x3ff << 10)
        #expect(Array(pages[10 * 4096..<20 * 4096]) == bytes)
    }

    /// A guest that overwrites its disk all along, and writes back what was there: what is proved is right, whatever was
    /// written between index, send and read.
    @Test func aBusyDiskNeverYieldsAWrongPage() throws {
        let path = folder.file("disk")
        let opened = try BlockIndex.open(IndexOrder(image: path, sidecar: folder.file("index"), key: key))
        let index = try #require(opened?.index)
        let enough = Latch()
        let writer = try WorkerThread("writer") {
            guard let file = try? Descriptor.open(path, .readWrite) else { return }
            var round = 0
            while !enough.isOpened {
                round += 1
                let block = round / 2 * 7 % 256
                let bytes = page(round % 2 == 0 ? 10_000 + round : block)
                // A write that is half done is seen, too.
                try? file.write(bytes.rawBytes.extracting(0..<1000), at: UInt64(block * 4096))
                try? file.write(bytes.rawBytes.extracting(1000..<4096), at: UInt64(block * 4096 + 1000))
            }
        }
        defer {
            enough.open()
            writer.join()
        }
        var reader = ImageReader(try ImageReader.openImage(path), key)
        var pages = PageBuffer(byteCount: 64 * 4096)
        var (right, refused, wrong) = (0, 0, 0)
        for batch in 0..<400 {
            let numbers = Array(batch % 4 * 64..<batch % 4 * 64 + 64)
            let references = numbers.map { number in
                reference(number, at: index.block(of: key.hint(of: page(number).rawBytes)))
            }
            let proved = reader.prove(references.span, into: &pages)
            for (slot, number) in numbers.enumerated() {
                if proved & (1 << UInt64(slot)) == 0 {
                    refused += 1
                } else if pages.bytes.extracting(slot * 4096..<(slot + 1) * 4096).equals(page(number).rawBytes) {
                    right += 1
                } else {
                    wrong += 1
                }
            }
        }
        #expect(wrong == 0)
        #expect(right > 0 && refused > 0, "\(right) right, \(refused) refused: nothing raced")
    }
}
