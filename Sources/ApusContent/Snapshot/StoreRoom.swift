internal import ApusSystem

// What goes, and when. A manifest goes first, then segments that no manifest needs:
//
//   manifests --> pages in use --> per segment:  none in use              removed
//                                                less than half of it     what is in use is copied, then removed
//                                                more                     stays as it is
//
// What is copied is on the disk before its segment goes; a kill in between leaves a page twice, which the next collection
// sees.

extension SnapshotStore {
    /// All snapshots, the one used longest ago first.
    public func snapshots() throws(StoreError) -> [SnapshotInfo] {
        do throws(SystemError) { return try listed() } catch { throw StoreError(error) }
    }

    /// Removes a snapshot, and then what only it needed.
    ///
    /// - Parameter wipes: overwrites what goes with zeros first. Disks that write elsewhere than told to (SSDs,
    ///   copy-on-write file systems) may keep the old bytes all the same: only encryption below the store hides those.
    public mutating func drop(_ snapshot: SnapshotInfo, wipes: Bool = false) throws(StoreError) {
        do throws(SystemError) { try forget(snapshot, wipes: wipes) } catch { throw StoreError(error) }
        try collect(wipes: wipes)
    }

    /// Gives back segments that no snapshot needs.
    ///
    /// - Parameter wipes: then no page that is not needed stays in any segment.
    public mutating func collect(wipes: Bool = false) throws(StoreError) {
        try collect(copyingBelow: wipes ? 1 : ContentLimits.segmentUseMin, wipes: wipes)
    }

    /// - Parameter share: segments of which less is in use are copied.
    private mutating func collect(copyingBelow share: Double, wipes: Bool) throws(StoreError) {
        // From here on, segments of a snapshot that is being written hold pages of others, too.
        ownSegments = nil
        do throws(SystemError) {
            try segments.seal()
            let used = try pagesInUse()
            let plan = collection(used, copyingBelow: share)
            // First what costs nothing: copying may need the room.
            for number in plan.unused { try discardSegment(number, wipes: wipes) }
            try copy(plan.sparse, used)
            for number in plan.sparse { try discardSegment(number, wipes: wipes) }
            try reload()
        } catch {
            // Some are gone, and some are there twice.
            segments.letGo()
            try? reload()
            throw StoreError(error)
        }
    }

    /// Makes room for so many bytes under the cap.
    mutating func makeRoom(_ byteCount: Int) throws(StoreError) {
        // Some more than asked for, or the next chunk would ask again.
        let goal = bytesMax - bytesMax / 16
        var limit = bytesMax
        while segmentBytes + manifestBytes + UInt64(byteCount) > limit {
            limit = goal
            for share in [ContentLimits.segmentUseMin, ContentLimits.segmentUseMax] {
                try collect(copyingBelow: share, wipes: false)
                if segmentBytes + manifestBytes + UInt64(byteCount) <= goal { return }
            }
            guard let oldest = try snapshots().first else {
                if segmentBytes + UInt64(byteCount) <= bytesMax { return }
                throw .full(bytesMax: bytesMax)
            }
            do throws(SystemError) { try forget(oldest, wipes: false) } catch { throw StoreError(error) }
        }
    }

    // MARK: What is in use

    /// Of `directory.pages`, one bit each.
    private mutating func pagesInUse() throws(SystemError) -> [UInt64] {
        var used = [UInt64](repeating: 0, count: (directory.pages.count + 63) / 64)
        var stripe = ManifestStripe()
        for snapshot in try listed() {
            let file = try Descriptor.open("\(path)/\(snapshot.file)", .read)
            for number in 0..<ManifestHead.stripes(of: snapshot.pageCount) {
                guard try stripe.load(file, number) else {
                    repairs.append("the snapshot of \(snapshot.vm) was damaged, and is removed")
                    try forget(snapshot, wipes: false)
                    break
                }
                mark(stripe, &used)
            }
        }
        // A snapshot that is being written has no other way to keep what it has found here.
        let written = writing?.stripesWritten ?? 0
        for number in 0..<written where try writing?.load(&stripe, number) == true { mark(stripe, &used) }
        if writing?.loadPending(&stripe) == true { mark(stripe, &used) }
        return used
    }

    private func mark(_ stripe: borrowing ManifestStripe, _ used: inout [UInt64]) {
        for index in 0..<ManifestHead.stripePages {
            let hint = stripe.hint(index)
            if hint != 0, let page = directory.find(hint) { used[page >> 6] |= 1 << UInt64(page & 63) }
        }
    }

    /// Segments without a page in use, and those with so few that copying them pays.
    private func collection(_ used: [UInt64], copyingBelow share: Double) -> (unused: [UInt32], sparse: [UInt32]) {
        var inUse: [UInt32: Int] = [:]
        var all: [UInt32: Int] = [:]
        for page in 0..<directory.pages.count {
            let segment = directory.pages.place(page).segment
            all[segment, default: 0] += 1
            if used[page >> 6] & (1 << UInt64(page & 63)) != 0 { inUse[segment, default: 0] += 1 }
        }
        var unused: [UInt32] = []
        var sparse: [UInt32] = []
        for segment in segments.sizes.keys {
            let total = all[segment, default: 0]
            let kept = inUse[segment, default: 0]
            if kept == 0 {
                unused.append(segment)
            } else if Double(kept) < Double(total) * share {
                sparse.append(segment)
            }
        }
        return (unused, sparse.sorted())
    }

    /// Copies what is in use of some segments behind the last one, and on the disk.
    private mutating func copy(_ sparse: [UInt32], _ used: [UInt64]) throws(SystemError) {
        if sparse.isEmpty { return }
        guard var reader = ChunkReader(), var copies = ChunkWriter() else {
            throw SystemError("malloc", code: SystemError.noMemory)
        }
        for number in sparse {
            let file = try Descriptor.open(segmentPath(number), .read)
            var at = PagePlace(segment: number, offset: SegmentLayout.headBytes, index: 0)
            while try reader.load(file, at) {
                let needed = (0..<reader.count).filter { index in
                    guard let page = directory.find(reader.name(index).hint) else { return false }
                    return directory.pages.place(page) == at.of(index)
                        && used[page >> 6] & (1 << UInt64(page & 63)) != 0
                }
                if !needed.isEmpty && reader.expand() {
                    for index in needed {
                        if copies.isFull { try flush(&copies) }
                        copies.add(reader.name(index), reader.page(index))
                    }
                }
                let next = ChunkLayout.next(after: at.offset + UInt64(reader.byteCount))
                if next >= UInt64(ContentLimits.segmentBytes) { break }
                at = PagePlace(segment: number, offset: Int(next), index: 0)
            }
        }
        try flush(&copies)
        try segments.seal()
        try Folder.sync(path)
    }

    private mutating func flush(_ copies: inout ChunkWriter) throws(SystemError) {
        if copies.count == 0 { return }
        let byteCount = copies.pack()
        _ = try segments.append(copies, byteCount)
        copies.clear()
    }

    // MARK: Files

    /// Clears away what a kill has left: files that never got their names.
    mutating func repair() throws(SystemError) {
        let names = Set(try Folder.names(in: path))
        for name in names {
            // The number will be given again, and then this would be the index of another segment.
            let number = SegmentLayout.number(of: name, suffix: ".index")
            let isAlone = number.map { !names.contains(SegmentLayout.fileName($0)) } ?? false
            if name.hasSuffix(".new") || isAlone { try Folder.remove("\(path)/\(name)") }
        }
        for name in try Folder.names(in: path) where name.hasSuffix(".manifest") {
            let file = try Descriptor.open("\(path)/\(name)", .read)
            if try ManifestHead.read(file) == nil {
                repairs.append("the snapshot \(name) was damaged or of another format, and is removed")
                try Folder.remove("\(path)/\(name)")
            }
        }
        manifestBytes = try listed().reduce(0) { $0 + $1.byteCount }
    }

    func listed() throws(SystemError) -> [SnapshotInfo] {
        var found: [SnapshotInfo] = []
        for name in try Folder.names(in: path) where name.hasSuffix(".manifest") {
            let file = try Descriptor.open("\(path)/\(name)", .read)
            guard let head = try ManifestHead.read(file) else { continue }
            let stamp = try file.stamp()
            found.append(
                SnapshotInfo(
                    vm: head.vm, fingerprint: head.fingerprint, pageCount: head.pageCount, usedNs: stamp.writtenNs,
                    file: name, byteCount: stamp.byteCount))
        }
        return found.sorted { ($0.usedNs, $0.file) < ($1.usedNs, $1.file) }
    }

    private mutating func forget(_ snapshot: SnapshotInfo, wipes: Bool) throws(SystemError) {
        try discard("\(path)/\(snapshot.file)", wipes: wipes)
        try Folder.sync(path)
        manifestBytes = try listed().reduce(0) { $0 + $1.byteCount }
    }

    mutating func discardSegment(_ number: UInt32, wipes: Bool) throws(SystemError) {
        try discard(segmentPath(number), wipes: wipes)
        try discard(indexPath(number), wipes: wipes)
        segments.remove(number)
    }

    private func discard(_ file: String, wipes: Bool) throws(SystemError) {
        if wipes { try overwrite(file) }
        try Folder.remove(file)
    }

    private func overwrite(_ path: String) throws(SystemError) {
        let file = try Descriptor.open(path, .readWrite)
        let size = try file.byteCount()
        var zeros = PageBuffer(byteCount: ContentLimits.extentBytes)
        for at in stride(from: 0, to: zeros.byteCount, by: 8) { zeros.store(0, at: at) }
        var at: UInt64 = 0
        while at < size {
            let count = Int(min(size - at, UInt64(zeros.byteCount)))
            try file.write(zeros.bytes.extracting(0..<count), at: at)
            at += UInt64(count)
        }
        try file.sync()
    }
}
