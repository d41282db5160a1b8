public import ApusMemory
public import ApusSystem

/// A snapshot that pages can be read from. It keeps its segments open, so that nothing the store does later takes them
/// away. Takes 16 bytes a page.
public final class Snapshot: Sendable {
    public let vm: String
    public let pageCount: PageNumber
    let fingerprint: UInt64
    /// Hint and place of each page.
    private let pages: PageBuffer
    private let files: [UInt32: Descriptor]

    init(_ info: SnapshotInfo, _ pages: consuming PageBuffer, _ files: [UInt32: Descriptor]) {
        vm = info.vm
        pageCount = info.pageCount
        fingerprint = info.fingerprint
        self.pages = pages
        self.files = files
    }

    /// The page's hint, to be told to the peer; 0: zeros, or nothing is here. Traps outside the VM.
    public func hint(of page: PageNumber) -> UInt64 { pages.word(at: Int(page) * 16) }

    func place(of page: PageNumber) -> PagePlace { PagePlace(bits: pages.word(at: Int(page) * 16 + 8)) }
    func file(_ segment: UInt32) -> Descriptor? { files[segment] }
}

extension SnapshotStore {
    /// The snapshot of a VM, else of one like it: the one used last of those under the same key with about as much memory.
    /// Of a VM from the same template, most is the same. It is now the one used last. Nil: there is none.
    ///
    /// - Parameter ramBytes: of the VM; nil: only its own will do.
    public mutating func snapshot(
        of vm: String, _ key: ContentKey, orLike ramBytes: UInt64? = nil
    ) throws(StoreError) -> Snapshot? {
        guard let info = try info(of: vm, key, orLike: ramBytes) else { return nil }
        return try open(info)
    }

    /// Whose snapshot that would be.
    public func holder(of vm: String, _ key: ContentKey, orLike ramBytes: UInt64?) throws(StoreError) -> String? {
        try info(of: vm, key, orLike: ramBytes)?.vm
    }

    private func info(
        of vm: String, _ key: ContentKey, orLike ramBytes: UInt64?
    ) throws(StoreError) -> SnapshotInfo? {
        let all = try snapshots().filter { $0.fingerprint == key.fingerprint }
        if let own = all.first(where: { $0.vm == vm }) { return own }
        guard let ramBytes else { return nil }
        // A snapshot has a little more, of its firmware.
        let like = all.filter {
            let bytes = UInt64($0.pageCount) * UInt64(Limits.pageBytes)
            return bytes >= ramBytes && bytes - ramBytes <= ContentLimits.firmwareBytesMax
        }
        return like.max { $0.usedNs < $1.usedNs }
    }

    private mutating func open(_ info: SnapshotInfo) throws(StoreError) -> Snapshot {
        do throws(SystemError) {
            let file = try Descriptor.open("\(path)/\(info.file)", .read)
            var pages = PageBuffer(byteCount: max(1, Int(info.pageCount)) * 16)
            var files: [UInt32: Descriptor] = [:]
            var stripe = ManifestStripe()
            for page in 0..<Int(info.pageCount) {
                let index = page % ManifestHead.stripePages
                if index == 0, try !stripe.load(file, page / ManifestHead.stripePages) { stripe.clear() }
                let hint = stripe.hint(index)
                var place = PagePlace.none
                if hint != 0, let number = directory.find(hint) {
                    place = directory.pages.place(number)
                    if files[place.segment] == nil {
                        files[place.segment] = try Descriptor.open(segmentPath(place.segment), .read)
                    }
                }
                pages.store(place == .none ? 0 : hint, at: page * 16)
                pages.store(place.bits, at: page * 16 + 8)
            }
            try Folder.touch("\(path)/\(info.file)")
            return Snapshot(info, pages, files)
        } catch { throw StoreError(error) }
    }
}

/// Reads pages of a snapshot, and proves them. One reader per thread; in the snapshot's order it expands each chunk once.
public struct SnapshotReader: ~Copyable, Sendable {
    private let snapshot: Snapshot
    private let key: ContentKey
    private var chunk: ChunkReader

    /// Nil: the snapshot is of another trust domain, or there is no memory.
    public init?(_ snapshot: Snapshot, _ key: ContentKey) {
        guard snapshot.fingerprint == key.fingerprint, let chunk = ChunkReader() else { return nil }
        self.chunk = chunk
        self.snapshot = snapshot
        self.key = key
    }

    /// Copies pages of the snapshot to `offset` of the buffer. False: they are not what the digest says; ask for the pages
    /// themselves, what lies there now is nothing of meaning.
    public mutating func prove(_ run: ContentRun, into buffer: inout PageBuffer, at offset: Int) -> Bool {
        guard run.end <= UInt64(snapshot.pageCount) else { return false }
        for index in 0..<run.pages {
            let at = offset + index * Limits.pageBytes
            guard copy(run.at + PageNumber(index), to: &buffer, at: at) else { return false }
        }
        let bytes = buffer.bytes.extracting(offset..<offset + run.pages * Limits.pageBytes)
        return key.digest(of: bytes) == run.digest
    }

    private mutating func copy(_ page: PageNumber, to buffer: inout PageBuffer, at offset: Int) -> Bool {
        let place = snapshot.place(of: page)
        guard place != .none, let file = snapshot.file(place.segment), (try? chunk.load(file, place)) == true,
            place.index < chunk.count, chunk.expand()
        else { return false }
        buffer.write(chunk.page(place.index), at: offset)
        return true
    }
}

/// What the peer has of a VM, as it has told: the hint of each page of its snapshot. 20 bytes a page.
public struct PeerPages: ~Copyable, Sendable {
    public let pageCount: PageNumber
    private var hints: PageBuffer
    private var table: HintTable

    /// Nil: there is no memory for it.
    public init?(pageCount: PageNumber) {
        guard pageCount < UInt32.max / 2, let table = HintTable(entriesMax: Int(pageCount)) else { return nil }
        self.pageCount = pageCount
        self.table = table
        hints = PageBuffer(byteCount: max(1, Int(pageCount)) * 8)
        for page in 0..<Int(pageCount) { hints.store(0, at: page * 8) }
    }

    /// Traps outside the VM.
    public mutating func set(_ page: PageNumber, _ hint: UInt64) {
        precondition(page < pageCount)
        hints.store(hint, at: Int(page) * 8)
        if hint != 0 { _ = table.insert(hint, page) }
    }

    /// The page of the peer's snapshot that probably equals the one with this hint: the same page if it can be, because
    /// the peer then reads in order; else any.
    @inline(__always)
    public func find(_ hint: UInt64, at page: PageNumber) -> PageNumber? {
        if page < pageCount && hints.word(at: Int(page) * 8) == hint { return page }
        guard let other = table.find(hint),
            hints.word(at: Int(other) * 8) == hint
        else { return nil }
        return other
    }
}
