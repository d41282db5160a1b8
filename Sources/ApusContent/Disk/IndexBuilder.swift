internal import ApusMemory
internal import ApusSystem

extension BlockIndex {
    /// Loads the index of an image when its sidecar still fits, and makes it otherwise; on the calling thread, which is
    /// best an idle one (`WorkerThread.idle`, `WorkerThread.giveWayOnDisk`).
    ///
    /// ```
    ///   sidecar fits -------------------------------------------> loaded: no block of the image is read but two
    ///   NAME.part fits -> its extents are taken -> the rest is read -> resumed
    ///   neither ------------------------------> all is read --------> built
    /// ```
    ///
    /// An image that was written to is read again as a whole: nothing tells cheaply which blocks are others. Hashing is
    /// far faster than any disk; holes are not read.
    ///
    /// - Parameters:
    ///   - mayBeStale: takes the sidecar of an image that was written to since. All hits are proved anyway; a fresh index
    ///     finds more.
    ///   - isCancelled: asked once per MiB. What was read until then is kept for the next time.
    /// - Returns: nil when it was cancelled.
    public static func open(
        _ order: IndexOrder, mayBeStale: Bool = false, isCancelled: () -> Bool = { false }
    ) throws(IndexError) -> (index: BlockIndex, origin: IndexOrigin)? {
        let plan = try IndexPlan.of(order)
        guard let table = HintTable(entriesMax: plan.extents.count * ContentLimits.extentBlocks) else {
            throw .noMemory
        }
        var builder = IndexBuilder(order, plan, table)
        do throws(SystemError) {
            guard let origin = try builder.run(mayBeStale, isCancelled) else { return nil }
            return (builder.finish(), origin)
        } catch { throw .sidecar(path: order.sidecar, error) }
    }
}

/// What is to be read of an image.
private struct IndexPlan {
    let image: Descriptor
    /// Ascending.
    let extents: [UInt32]
    let head: SidecarHead
    /// The image was written to just now.
    let isFresh: Bool

    static func of(_ order: IndexOrder) throws(IndexError) -> IndexPlan {
        let image = try ImageReader.openImage(order.image)
        do throws(SystemError) {
            return try of(order, image, try image.stamp())
        } catch { throw .image(path: order.image, error) }
    }

    private static func of(
        _ order: IndexOrder, _ image: Descriptor, _ stamp: FileStamp
    ) throws(SystemError) -> IndexPlan {
        // Numbers of blocks have 32 bits.
        if stamp.byteCount > ContentLimits.imageBytesMax { throw SystemError("index", code: SystemError.tooLarge) }
        let all = try extentsWithData(image, byteCount: stamp.byteCount)
        let extentsMax = max(1, order.tableBytesMax / (ContentLimits.extentBlocks * HintTable.bytesPerEntry))
        let stride = max(1, (all.count + extentsMax - 1) / extentsMax)
        let lastBlock = max(1, stamp.byteCount / UInt64(Limits.pageBytes)) - 1
        let head = SidecarHead(
            fingerprint: order.key.fingerprint, stamp: stamp, firstHint: try hint(image, ofBlock: 0, order.key),
            lastHint: try hint(image, ofBlock: lastBlock, order.key), stride: UInt32(stride), extents: 0,
            unreadable: 0, isComplete: false)
        return IndexPlan(
            image: image, extents: Swift.stride(from: 0, to: all.count, by: stride).map { all[$0] }, head: head,
            isFresh: FileStamp.nowNs() < stamp.writtenNs + ContentLimits.stampTrustNs)
    }

    private static func extentsWithData(_ image: Descriptor, byteCount: UInt64) throws(SystemError) -> [UInt32] {
        let extentBytes = UInt64(ContentLimits.extentBytes)
        var extents: [UInt32] = []
        var at: UInt64 = 0
        while at < byteCount, let data = try image.nextData(from: at) {
            let end = min(data.upperBound, byteCount)
            if data.lowerBound >= end { break }
            let first = UInt32(data.lowerBound / extentBytes)
            let last = UInt32((end - 1) / extentBytes)
            // Two pieces of data may share an extent.
            let next = extents.last.map { max(first, $0 + 1) } ?? first
            if next <= last { extents.append(contentsOf: next...last) }
            at = end
        }
        return extents
    }

    private static func hint(
        _ image: Descriptor, ofBlock block: UInt64, _ key: ContentKey
    ) throws(SystemError) -> UInt64 {
        var page = PageBuffer(byteCount: Limits.pageBytes)
        let at = block * UInt64(Limits.pageBytes)
        let count = try image.read(at: at, into: &page, 0..<Limits.pageBytes)
        return key.hint(of: page.bytes.extracting(0..<count))
    }
}

/// One run over one image.
private struct IndexBuilder: ~Copyable {
    private let order: IndexOrder
    private let plan: IndexPlan
    private var table: HintTable
    private var hints = ExtentHints()
    private var unreadable = 0

    init(_ order: IndexOrder, _ plan: IndexPlan, _ table: consuming HintTable) {
        self.order = order
        self.plan = plan
        self.table = table
    }

    consuming func finish() -> BlockIndex {
        BlockIndex(table, stride: Int(plan.head.stride), unreadableExtents: unreadable)
    }

    mutating func run(_ mayBeStale: Bool, _ isCancelled: () -> Bool) throws(SystemError) -> IndexOrigin? {
        let fault: SidecarFault
        do throws(SidecarFault) {
            try load(mayBeStale)
            return .loaded
        } catch { fault = error }
        // What a damaged sidecar has put into the table are hints like others: each of its extents has a checksum.
        let partPath = order.sidecar + ".part"
        var head = plan.head
        var part: Sidecar
        var last: UInt32?
        if let (file, began) = unfinished(partPath) {
            // It began when the image was older: the finished index must not claim to be newer than its oldest part.
            head = began
            part = Sidecar(file)
            while try part.next(&hints), last.map({ $0 < hints.number }) ?? true {
                last = hints.number
                take()
            }
            // Only whole extents are kept: what follows is written over.
        } else {
            // A write so shortly before the stamp was taken may share its time with one that comes while we read.
            if plan.isFresh { head.stamp.writtenNs = 0 }
            part = Sidecar(try Descriptor.create(partPath))
            try part.write(head)
        }
        let resumed = part.extents
        guard try read(after: last, into: &part, isCancelled) else { return nil }
        try complete(part, head)
        try Folder.rename(partPath, to: order.sidecar)
        return resumed > 0 ? .resumed(extents: resumed) : .built(because: fault)
    }

    /// Fills the table from the sidecar.
    private mutating func load(_ mayBeStale: Bool) throws(SidecarFault) {
        let file: Descriptor
        do { file = try Descriptor.open(order.sidecar, .read) } catch {
            throw error.isMissing ? .missing : .unreadable(error)
        }
        let head = try Sidecar.readHead(file)
        if let fault = head.fault(against: plan.head), !(fault == .imageChanged && mayBeStale) { throw fault }
        guard head.isComplete else { throw .corrupt("it was never finished") }
        var sidecar = Sidecar(file)
        while sidecar.extents < Int(head.extents) {
            let isWhole: Bool
            do { isWhole = try sidecar.next(&hints) } catch { throw .unreadable(error) }
            guard isWhole else { throw .corrupt("extent \(sidecar.extents) of \(head.extents)") }
            take()
        }
        unreadable = Int(head.unreadable)
    }

    /// What an earlier run left, when it was about this very file.
    private func unfinished(_ path: String) -> (Descriptor, SidecarHead)? {
        guard let file = try? Descriptor.open(path, .readWrite), let head = try? Sidecar.readHead(file),
            !head.isComplete
        else { return nil }
        let fault = head.fault(against: plan.head)
        return fault == nil || fault == .imageChanged ? (file, head) : nil
    }

    /// Reads what comes behind extent `last`. False when it was cancelled.
    private mutating func read(
        after last: UInt32?, into part: inout Sidecar, _ isCancelled: () -> Bool
    ) throws(SystemError) -> Bool {
        var content = PageBuffer(byteCount: ContentLimits.extentBytes)
        let began = Instant.now()
        var idle = IdlePace()
        var fromDisk = 0
        for extent in plan.extents where last.map({ extent > $0 }) ?? true {
            if isCancelled() { return false }
            let at = UInt64(extent) * UInt64(ContentLimits.extentBytes)
            guard let read = try? plan.image.readAside(at: at, into: &content, 0..<ContentLimits.extentBytes) else {
                unreadable += 1
                continue
            }
            hints.fill(extent, content.bytes.extracting(0..<read.byteCount), order.key)
            take()
            try part.append(hints)
            idle.giveWay()
            fromDisk += read.fromDisk
            if let bytesPerS = order.bytesPerS {
                let aheadMs = Double(fromDisk) / bytesPerS * 1000 - Instant.now().ms(since: began)
                if aheadMs > 0 { pause(ms: aheadMs) }
            }
        }
        return true
    }

    private mutating func take() {
        let first = UInt64(hints.number) * UInt64(ContentLimits.extentBlocks)
        for block in 0..<ContentLimits.extentBlocks {
            let hint = hints.hint(block)
            let number = first + UInt64(block)
            // The first of equal blocks is as good as the others.
            if hint != 0 && number < UInt64(HintTable.valueMax) { _ = table.insert(hint, UInt32(number)) }
        }
    }

    private func complete(_ part: borrowing Sidecar, _ began: SidecarHead) throws(SystemError) {
        var head = began
        head.extents = UInt32(part.extents)
        head.unreadable = UInt32(unreadable)
        head.isComplete = true
        try part.finish(head)
    }
}
