public import ApusMemory
public import ApusSystem

/// Memory images of VMs that have left, on disk: each distinct page once, compressed, under a cap. A VM that comes back, or
/// a sibling of it, then travels as references to what is here.
///
/// ```
///   begin(vm) -> add(page) ... -> finish     a page that is here already: its name into the manifest, nothing else
///        |            |                      a new one: into a chunk of 16, compressed, behind the last segment
///        |            `-- full --> the snapshot used longest ago goes, segments are given back
///        `--------- any failure --> abandoned; what was there before stays as it was
///
///   order of writing:  chunks -> segments on disk -> manifest on disk -> manifest gets its name
/// ```
///
/// Whatever moment a process is killed at, a manifest that can be seen names only pages that are on the disk. What is left
/// over is cleared away at the next start. One owner at a time: another process is locked out, and the owner is one
/// thread. ``Snapshot``s that it has given out are read by any number of threads meanwhile.
public struct SnapshotStore: ~Copyable, Sendable {
    public let path: String
    public let bytesMax: UInt64
    /// What was found broken and put right, for people.
    public internal(set) var repairs: [String] = []

    private let lock: FileLock
    var directory: PageDirectory
    var segments: SegmentWriter
    var manifestBytes: UInt64 = 0
    private var chunk: ChunkWriter
    private var names: ChunkReader
    var writing: ManifestWriter?
    private var writingKey: ContentKey?
    /// The first segment that holds pages of the snapshot that is being written, and nothing else; nil: there is none.
    var ownSegments: UInt32?
    /// Open segments whose pages were asked for lately.
    private var files: [UInt32: Descriptor] = [:]
    private static let filesMax = 64

    private init(
        _ path: String, _ bytesMax: UInt64, _ lock: FileLock, _ directory: consuming PageDirectory,
        _ chunk: consuming ChunkWriter, _ names: consuming ChunkReader
    ) {
        self.path = path
        self.bytesMax = bytesMax
        self.lock = lock
        segments = SegmentWriter(path)
        self.directory = directory
        self.chunk = chunk
        self.names = names
    }

    /// Opens the store in a folder of its own, which is made if need be, and puts right what a kill has left there.
    public static func open(path: String, bytesMax: UInt64) throws(StoreError) -> SnapshotStore {
        let lock: FileLock
        do throws(SystemError) {
            try Folder.make(path)
            lock = try FileLock(path: path + "/lock")
        } catch { throw error.isTimeout ? .inUse(path: path) : .disk(error) }
        guard let directory = PageDirectory(), let chunk = ChunkWriter(), let names = ChunkReader() else {
            throw .noMemory
        }
        var store = SnapshotStore(path, bytesMax, lock, directory, chunk, names)
        do throws(SystemError) {
            try store.repair()
            try store.reload()
        } catch { throw StoreError(error) }
        return store
    }

    /// Bytes on disk.
    public var byteCount: UInt64 { segmentBytes + manifestBytes }
    var segmentBytes: UInt64 { segments.byteCount }
    /// Distinct pages.
    public var pages: Int { directory.pages.count }

    // MARK: One VM's pages

    /// Begins a snapshot, which takes the place of the VM's older one when it is finished.
    ///
    /// - Parameter vm: at most 255 bytes.
    public mutating func begin(vm: String, _ key: ContentKey, pageCount: PageNumber) throws(StoreError) {
        guard writing == nil else { throw .busy }
        guard vm.utf8.count <= ManifestHead.nameBytesMax else { throw .longName(vm) }
        let head = ManifestHead(vm: vm, fingerprint: key.fingerprint, pageCount: pageCount)
        guard ManifestHead.offset(ofStripe: head.stripes) < bytesMax else { throw .full(bytesMax: bytesMax) }
        let file = path + "/" + ManifestHead.fileName(vm: vm, fingerprint: key.fingerprint)
        do throws(SystemError) {
            // In segments of its own it can be given up, or dropped later, without copying the others' pages.
            try segments.seal()
            writing = ManifestWriter(head, path: file, try Descriptor.create(file + ".new"))
            writingKey = key
            ownSegments = (segments.sizes.keys.max() ?? 0) + 1
        } catch { throw StoreError(error) }
    }

    /// Adds a page; ascending, and those that are left out are zeros. An error ends the snapshot.
    public mutating func add(_ page: PageNumber, _ bytes: RawSpan) throws(StoreError) {
        guard let key = writingKey else { preconditionFailure("no snapshot was begun") }
        if bytes.isAllZero { return }
        let name = PageName(of: bytes, key)
        do throws(StoreError) {
            if !holds(name) {
                if chunk.isFull { try writeChunk() }
                chunk.add(name, bytes)
            }
            do throws(SystemError) { try writing?.add(page, name) } catch { throw StoreError(error) }
        } catch {
            abandon()
            throw error
        }
    }

    /// The snapshot is complete, and on the disk.
    public mutating func finish() throws(StoreError) {
        do throws(StoreError) {
            try writeChunk()
            do throws(SystemError) {
                try segments.sync()
                try Folder.sync(path)
                try writing?.publish()
                try Folder.sync(path)
            } catch { throw StoreError(error) }
        } catch {
            abandon()
            throw error
        }
        writing = nil
        writingKey = nil
        manifestBytes = try snapshots().reduce(0) { $0 + $1.byteCount }
    }

    /// Gives up the snapshot that was begun, and its pages unless a collection has moved others among them.
    public mutating func abandon() {
        guard let temporary = writing?.temporaryPath else { return }
        writing = nil
        writingKey = nil
        chunk.clear()
        try? Folder.remove(temporary)
        segments.letGo()
        if let own = ownSegments {
            for number in segments.sizes.keys where number >= own { try? discardSegment(number, wipes: false) }
        }
        try? reload()
    }

    /// True when the very page is here: the hint finds it, the digest decides.
    private mutating func holds(_ name: PageName) -> Bool {
        guard let number = directory.find(name.hint) else { return false }
        let place = directory.pages.place(number)
        // With its checksum: a copy that has rotted is none.
        guard let file = file(place.segment), (try? names.load(file, place)) == true, place.index < names.count else {
            return false
        }
        return names.name(place.index) == name
    }

    private mutating func file(_ segment: UInt32) -> Descriptor? {
        if let file = files[segment] { return file }
        guard let file = try? Descriptor.open(segmentPath(segment), .read) else { return nil }
        if files.count == Self.filesMax { files.removeAll() }
        files[segment] = file
        return file
    }

    private mutating func writeChunk() throws(StoreError) {
        if chunk.count == 0 { return }
        let byteCount = chunk.pack()
        try makeRoom(byteCount)
        do throws(SystemError) {
            let place = try segments.append(chunk, byteCount)
            for index in 0..<chunk.count {
                guard directory.insert(chunk.hint(index), place.of(index)) else {
                    throw SystemError("mmap", code: SystemError.noMemory)
                }
            }
        } catch { throw StoreError(error) }
        chunk.clear()
    }

    // MARK: Segments

    func segmentPath(_ number: UInt32) -> String { SegmentLayout.segmentPath(path, number) }
    func indexPath(_ number: UInt32) -> String { SegmentLayout.indexPath(path, number) }

    /// Learns anew what all segments hold; none is open.
    mutating func reload() throws(SystemError) {
        guard var fresh = PageDirectory() else { throw SystemError("mmap", code: SystemError.noMemory) }
        segments.forgetAll()
        files = [:]
        names.forget()
        var pages = SegmentPages()
        for name in try Folder.names(in: path).sorted() {
            guard let number = SegmentLayout.number(of: name, suffix: ".segment") else { continue }
            let path = segmentPath(number)
            if try !pages.load(indexPath(number), segment: number) {
                guard try indexAgain(number, &pages) else { continue }
            }
            segments.add(number, try Descriptor.open(path, .read).byteCount())
            for page in 0..<pages.count {
                guard fresh.insert(pages.hint(page), pages.place(page)) else {
                    throw SystemError("mmap", code: SystemError.noMemory)
                }
            }
        }
        directory = fresh
    }

    /// Makes the index of a segment that was being written to, or whose index is damaged. False: nothing of it is left.
    private mutating func indexAgain(_ number: UInt32, _ pages: inout SegmentPages) throws(SystemError) -> Bool {
        pages.clear()
        let file = try Descriptor.open(segmentPath(number), .readWrite)
        let size = try file.byteCount()
        var head = PageBuffer(byteCount: SegmentLayout.headBytes)
        let have = try file.read(at: 0, into: &head, 0..<SegmentLayout.headBytes)
        var end = UInt64(SegmentLayout.headBytes)
        if have == SegmentLayout.headBytes, head.bytes.littleEndian(at: 0, as: UInt64.self) == SegmentLayout.magic {
            while end < UInt64(ContentLimits.segmentBytes),
                try names.load(file, PagePlace(segment: number, offset: Int(end), index: 0))
            {
                for index in 0..<names.count {
                    let place = PagePlace(segment: number, offset: Int(end), index: index)
                    guard pages.append(names.name(index).hint, place) else {
                        throw SystemError("mmap", code: SystemError.noMemory)
                    }
                }
                end = ChunkLayout.next(after: end + UInt64(names.byteCount))
            }
        }
        repairs.append("segment \(number): \(pages.count) pages found again, \(size - min(size, end)) bytes given up")
        if pages.count == 0 {
            try Folder.remove(segmentPath(number))
            try Folder.remove(indexPath(number))
            return false
        }
        if end < size { try file.truncate(toByteCount: end) }
        try file.sync()
        try pages.save(indexPath(number))
        return true
    }
}

public enum StoreError: Error, Sendable, Equatable, CustomStringConvertible {
    case inUse(path: String)
    case busy
    case longName(String)
    /// Even without any other snapshot there is no room under the cap.
    case full(bytesMax: UInt64)
    /// The file system has no room.
    case noRoom(SystemError)
    case noMemory
    case disk(SystemError)
    /// A VM's RAM was kept for it as long as it may be.
    case tooSlow(seconds: Double)

    init(_ error: SystemError) {
        if error.isNoRoom { self = .noRoom(error) } else { self = error.isExhaustion ? .noMemory : .disk(error) }
    }

    public var description: String {
        switch self {
        case .inUse(let path): "Another agent uses the content store \(path); give this one a folder of its own."
        case .busy: "Another snapshot is being written to the content store; wait for it."
        case .longName(let vm): "The name \(vm.prefix(40))... is too long for a snapshot; at most 255 bytes."
        case .full(let bytesMax):
            "The content store may take \(bytesMax) bytes, and this snapshot alone needs more; raise the cap."
        case .noRoom(let error):
            "There is no room for the content store (\(error)); free some, or lower the store's cap."
        case .tooSlow(let seconds):
            "It could not be written within \(Int(seconds.rounded())) s (content.keepS), for this host is busy, or its disk is slow."
        case .noMemory: "There is no memory for the content store's index."
        case .disk(let error): "The content store's disk fails (\(error))."
        }
    }
}
