internal import ApusMemory
internal import ApusSystem

// A store's content lies in segments, which are only ever appended to; integers are little-endian.
//
//   00000007.segment   "APUSSEG1" | 0 u64 | chunk | chunk | ...
//   00000007.index     "APUSSIX1" | pages u64 | checksum of all behind it | pages x ( hint u64 | place u64 )
//
// The index is written when the segment is full. A segment without one is the one that a killed agent was writing to: its
// chunks up to the first that is not whole are kept, and it is full from then on.

enum SegmentLayout {
    static let headBytes = 16
    static let magic: UInt64 = 0x3147_4553_5355_5041
    static let indexMagic: UInt64 = 0x3158_4953_5355_5041
    static let indexHeadBytes = 24
    static let indexEntryBytes = 16
    /// Pages of a segment cannot be more: each takes its name at least.
    static let pagesMax = ContentLimits.segmentBytes / PageName.byteCount

    static func segmentPath(_ folder: String, _ number: UInt32) -> String { folder + "/" + fileName(number) }
    static func fileName(_ number: UInt32) -> String { name(number) + ".segment" }
    static func indexPath(_ folder: String, _ number: UInt32) -> String { "\(folder)/\(name(number)).index" }

    private static func name(_ number: UInt32) -> String {
        let digits = String(number)
        return String(repeating: "0", count: 8 - digits.utf8.count) + digits
    }

    /// The number in `00000007.segment`; nil: some other file.
    static func number(of file: String, suffix: String) -> UInt32? {
        guard file.hasSuffix(suffix), file.utf8.count == 8 + suffix.utf8.count, let number = UInt32(file.prefix(8)),
            number <= ContentLimits.segmentNumberMax
        else { return nil }
        return number
    }
}

/// Pages of one segment, in the order they were written.
struct SegmentPages: ~Copyable {
    private var memory = GrowingMemory()
    private(set) var count = 0

    func hint(_ index: Int) -> UInt64 { memory.bytes.littleEndian(at: Self.at(index)) }
    func place(_ index: Int) -> PagePlace { PagePlace(bits: memory.bytes.littleEndian(at: Self.at(index) + 8)) }

    /// False: there is no memory for it.
    mutating func append(_ hint: UInt64, _ place: PagePlace) -> Bool {
        let at = Self.at(count)
        guard memory.grow(toHold: at + SegmentLayout.indexEntryBytes) else { return false }
        var bytes = memory.mutableBytes
        bytes.store(littleEndian: hint, at: at)
        bytes.store(littleEndian: place.bits, at: at + 8)
        count += 1
        return true
    }

    mutating func clear() { count = 0 }

    /// Writes `path` so that it is either whole or not there.
    mutating func save(_ path: String) throws(SystemError) {
        guard memory.grow(toHold: Self.at(count)) else { throw SystemError("mmap", code: SystemError.noMemory) }
        let pages = count
        let sum = Checksum.of(memory.bytes.extracting(SegmentLayout.indexHeadBytes..<Self.at(pages)))
        var bytes = memory.mutableBytes
        bytes.store(littleEndian: SegmentLayout.indexMagic, at: 0)
        bytes.store(littleEndian: UInt64(pages), at: 8)
        bytes.store(littleEndian: sum, at: 16)
        let file = try Descriptor.create(path + ".new")
        try file.write(memory.bytes.extracting(0..<Self.at(count)), at: 0)
        try file.sync()
        try Folder.rename(path + ".new", to: path)
    }

    /// False: it is not there, or damaged; what it holds is then of no use.
    mutating func load(_ path: String, segment: UInt32) throws(SystemError) -> Bool {
        let file: Descriptor
        do { file = try Descriptor.open(path, .read) } catch {
            if error.isMissing { return false }
            throw error
        }
        let size = try file.byteCount()
        guard size >= UInt64(SegmentLayout.indexHeadBytes), size <= UInt64(Self.at(SegmentLayout.pagesMax)) else {
            return false
        }
        var buffer = PageBuffer(byteCount: Int(size))
        guard try file.read(at: 0, into: &buffer, 0..<Int(size)) == Int(size) else { return false }
        guard buffer.bytes.littleEndian(at: 0, as: UInt64.self) == SegmentLayout.indexMagic,
            let pages = Int(exactly: buffer.bytes.littleEndian(at: 8, as: UInt64.self)),
            pages <= SegmentLayout.pagesMax, Self.at(pages) == Int(size),
            Checksum.of(buffer.bytes.extracting(Self.at(0)..<Int(size)))
                == buffer.bytes.littleEndian(at: 16, as: UInt64.self)
        else { return false }
        count = 0
        for index in 0..<pages {
            let place = PagePlace(bits: buffer.bytes.littleEndian(at: Self.at(index) + 8))
            guard place.segment == segment, append(buffer.bytes.littleEndian(at: Self.at(index)), place) else {
                return false
            }
        }
        return true
    }

    private static func at(_ index: Int) -> Int { SegmentLayout.indexHeadBytes + index * SegmentLayout.indexEntryBytes }
}

/// Every page of a store by its hint.
struct PageDirectory: ~Copyable {
    private static let firstEntries = 64 << 10
    private var table: HintTable
    private(set) var pages = SegmentPages()

    init?() {
        guard let table = HintTable(entriesMax: Self.firstEntries) else { return nil }
        self.table = table
    }

    /// The page's number in `pages`; nil: there is none with this hint.
    func find(_ hint: UInt64) -> Int? {
        guard let slot = table.find(hint), pages.hint(Int(slot)) == hint else { return nil }
        return Int(slot)
    }

    /// False: there is no memory for it.
    mutating func insert(_ hint: UInt64, _ place: PagePlace) -> Bool {
        if table.count == table.entriesMax {
            guard table.entriesMax < Int(UInt32.max / 4), var larger = HintTable(entriesMax: table.entriesMax * 2)
            else { return false }
            for index in 0..<pages.count { _ = larger.replace(pages.hint(index), UInt32(index)) }
            table = larger
        }
        guard pages.append(hint, place) else { return false }
        // A page may be there twice: copied by a collection that was killed, or stored anew because the older copy has
        // rotted. The later one is found, and the other is given back in time.
        return table.replace(hint, UInt32(pages.count - 1))
    }
}
