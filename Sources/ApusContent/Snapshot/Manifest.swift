public import ApusMemory
internal import ApusSystem

// The pages of one VM, in order; integers are little-endian.
//
//   NAME.manifest   head 512 bytes: "APUSMAN1" | key's fingerprint | pages | bytes of the name | name | ... | checksum
//                   stripe: 64 pages x 40 bytes (hint u64 | digest; hint 0: zeros, or not there) | checksum
//                   stripe ...
//
// It is written as NAME.manifest.new, after that everything it names is on the disk, and then gets its name: a manifest that
// can be seen is whole. Its time of last write tells when it was used last.

/// A snapshot of a store, as `apus store show` lists it.
public struct SnapshotInfo: Sendable, Equatable {
    public let vm: String
    /// Of the trust domain's key.
    public let fingerprint: UInt64
    /// Zeros included.
    public let pageCount: PageNumber
    /// Nanoseconds since 1970.
    public let usedNs: UInt64
    let file: String
    let byteCount: UInt64
}

struct ManifestHead: Equatable {
    static let byteCount = 512
    static let nameBytesMax = 255
    private static let magic: UInt64 = 0x314e_414d_5355_5041

    var vm: String
    var fingerprint: UInt64
    var pageCount: PageNumber

    static let stripePages = 64
    static let stripeBytes = stripePages * PageName.byteCount + 8
    var stripes: Int { Self.stripes(of: pageCount) }
    static func stripes(of pageCount: PageNumber) -> Int { (Int(pageCount) + stripePages - 1) / stripePages }
    static func offset(ofStripe stripe: Int) -> UInt64 { UInt64(byteCount + stripe * stripeBytes) }

    /// The same for the same VM and domain, whatever characters the name has.
    static func fileName(vm: String, fingerprint: UInt64) -> String {
        let name = Array(vm.utf8)
        return "\(hex(fingerprint))-\(hex(Checksum.of(name.rawBytes))).manifest"
    }

    private static func hex(_ word: UInt64) -> String {
        let digits = String(word, radix: 16)
        return String(repeating: "0", count: 16 - digits.utf8.count) + digits
    }

    func write(to file: Descriptor) throws(SystemError) {
        var buffer = PageBuffer(byteCount: Self.byteCount)
        for at in stride(from: 0, to: Self.byteCount, by: 8) { buffer.store(0, at: at) }
        let name = Array(vm.utf8)
        precondition(name.count <= Self.nameBytesMax)
        buffer.store(Self.magic, at: 0)
        buffer.store(fingerprint, at: 8)
        buffer.store(UInt64(pageCount), at: 16)
        buffer.store(UInt64(name.count), at: 24)
        buffer.write(name.rawBytes, at: 32)
        buffer.store(Checksum.of(buffer.bytes.extracting(0..<Self.byteCount - 8)), at: Self.byteCount - 8)
        try file.write(buffer.bytes, at: 0)
    }

    /// Nil: it is no manifest, or of another format, or damaged.
    static func read(_ file: Descriptor) throws(SystemError) -> ManifestHead? {
        var buffer = PageBuffer(byteCount: byteCount)
        guard try file.read(at: 0, into: &buffer, 0..<byteCount) == byteCount else { return nil }
        func word(_ at: Int) -> UInt64 { buffer.bytes.littleEndian(at: at) }
        guard word(0) == magic, word(byteCount - 8) == Checksum.of(buffer.bytes.extracting(0..<byteCount - 8)),
            let pageCount = UInt32(exactly: word(16)), word(24) <= UInt64(nameBytesMax)
        else { return nil }
        let name = buffer.bytes.extracting(32..<32 + Int(word(24))).bytesCopied
        return ManifestHead(vm: String(decoding: name, as: UTF8.self), fingerprint: word(8), pageCount: pageCount)
    }
}

/// Sixty-four names, as a manifest keeps them.
struct ManifestStripe: ~Copyable {
    private var buffer = PageBuffer(byteCount: ManifestHead.stripeBytes)
    private static let sumAt = ManifestHead.stripePages * PageName.byteCount

    init() { clear() }

    mutating func clear() { for at in stride(from: 0, to: Self.sumAt + 8, by: 8) { buffer.store(0, at: at) } }
    func name(_ index: Int) -> PageName { PageName(from: buffer.bytes, at: index * PageName.byteCount) }
    func hint(_ index: Int) -> UInt64 { buffer.bytes.littleEndian(at: index * PageName.byteCount) }
    mutating func set(_ index: Int, _ name: PageName) { name.write(to: &buffer, at: index * PageName.byteCount) }

    mutating func copy(_ other: borrowing ManifestStripe) { buffer.write(other.buffer.bytes, at: 0) }

    mutating func write(to file: Descriptor, _ stripe: Int) throws(SystemError) {
        buffer.store(sum(), at: Self.sumAt)
        try file.write(buffer.bytes, at: ManifestHead.offset(ofStripe: stripe))
    }

    /// False: it is damaged.
    mutating func load(_ file: Descriptor, _ stripe: Int) throws(SystemError) -> Bool {
        let at = ManifestHead.offset(ofStripe: stripe)
        let count = try file.read(at: at, into: &buffer, 0..<ManifestHead.stripeBytes)
        return count == ManifestHead.stripeBytes
            && sum() == buffer.bytes.littleEndian(at: Self.sumAt, as: UInt64.self)
    }

    private func sum() -> UInt64 { Checksum.of(buffer.bytes.extracting(0..<Self.sumAt)) }
}

/// A manifest that is being written, pages in ascending order.
struct ManifestWriter: ~Copyable {
    let head: ManifestHead
    let path: String
    private let file: Descriptor
    private var stripe = ManifestStripe()
    private var stripeNumber = 0
    private var next: PageNumber = 0
    var temporaryPath: String { path + ".new" }

    init(_ head: ManifestHead, path: String, _ file: Descriptor) {
        self.head = head
        self.path = path
        self.file = file
    }

    /// Pages that are left out are zeros.
    mutating func add(_ page: PageNumber, _ name: PageName) throws(SystemError) {
        precondition(page >= next && page < head.pageCount)
        next = page + 1
        let target = Int(page) / ManifestHead.stripePages
        while stripeNumber < target { try flush() }
        stripe.set(Int(page) % ManifestHead.stripePages, name)
    }

    /// Stripes that are in the file.
    var stripesWritten: Int { stripeNumber }
    func load(_ target: inout ManifestStripe, _ number: Int) throws(SystemError) -> Bool {
        try target.load(file, number)
    }

    /// The stripe that is not in the file yet.
    func loadPending(_ target: inout ManifestStripe) -> Bool {
        target.copy(stripe)
        return true
    }

    /// Everything it names must be on the disk.
    mutating func publish() throws(SystemError) {
        while stripeNumber < head.stripes { try flush() }
        try head.write(to: file)
        try file.sync()
        try Folder.rename(temporaryPath, to: path)
    }

    private mutating func flush() throws(SystemError) {
        try stripe.write(to: file, stripeNumber)
        stripe.clear()
        stripeNumber += 1
    }
}
