internal import ApusCodec
internal import Synchronization

/// What one lane has done so far. Written by the lane once per batch, read by anyone; totals since the start.
final class LaneCounters: Sendable {
    let zeroPages = Atomic<UInt64>(0)
    let rawPages = Atomic<UInt64>(0)
    let lz4Pages = Atomic<UInt64>(0)
    let lz4Bytes = Atomic<UInt64>(0)
    let zstdPages = Atomic<UInt64>(0)
    let zstdBytes = Atomic<UInt64>(0)
    /// Pages that travelled as their changed lines, these lines, and their bytes on the link.
    let linePages = Atomic<UInt64>(0)
    let changedLines = Atomic<UInt64>(0)
    let lineBytes = Atomic<UInt64>(0)
    /// Pages that were sent before and had not changed, so that nothing travelled.
    let samePages = Atomic<UInt64>(0)
    /// Pages compared by digest while the guest was stopped, and those of them that had to be sent again.
    let auditedPages = Atomic<UInt64>(0)
    let repairedPages = Atomic<UInt64>(0)
    /// Pages that the receiver has found on a disk, and in its snapshot; those it could not find there; those it said
    /// nothing of in time.
    let diskPages = Atomic<UInt64>(0)
    let snapshotPages = Atomic<UInt64>(0)
    let refusedPages = Atomic<UInt64>(0)
    let unansweredPages = Atomic<UInt64>(0)
    /// Pages whose answer is waited for.
    let waitingPages = Atomic<UInt64>(0)
    /// Bytes of frames with references.
    let referenceBytes = Atomic<UInt64>(0)
    /// Times references were found not to pay.
    let referenceClosures = Atomic<UInt64>(0)
    /// Memory of the line hashes.
    let lineTableBytes = Atomic<UInt64>(0)
    /// Bytes written to the link, frames included.
    let wireBytes = Atomic<UInt64>(0)
    /// Of these, bytes that the receiver has confirmed as installed.
    let confirmedBytes = Atomic<UInt64>(0)
    /// Nanoseconds of CPU time of the lane's thread.
    let cpuNs = Atomic<UInt64>(0)
    /// The lane's estimate of its share of the link, bytes per second.
    let linkBytesPerS = Atomic<UInt64>(0)
}

extension LaneCounters {
    /// What became of a batch that was sent.
    func count(_ result: BatchEncoder.Result) {
        zeroPages.add(result.zeroPages)
        rawPages.add(result.rawPages)
        switch result.codec {
        case .none: break
        case .lz4:
            lz4Pages.add(result.squeezedPages)
            lz4Bytes.add(result.squeezedBytes)
        case .zstd:
            zstdPages.add(result.squeezedPages)
            zstdBytes.add(result.squeezedBytes)
        }
    }
}

/// Hot pages that a port keeps back; written by the port, read by anyone.
final class HoldCounters: Sendable {
    let heldPages = Atomic<UInt64>(0)
    let coldPages = Atomic<UInt64>(0)
    let absorbedPages = Atomic<UInt64>(0)

    var sample: HoldSample {
        HoldSample(heldPages: heldPages.now, coldPages: coldPages.now, absorbedPages: absorbedPages.now)
    }
}

/// Hot pages kept back by the stream port at one moment; see `HeldPages`.
public struct HoldSample: Sendable, Equatable {
    /// Pages that wait in the agent; once the guest is stopped, those that waited then.
    public var heldPages: UInt64 = 0
    /// Of these, pages that will probably not come again: only they prolong the pause.
    public var coldPages: UInt64 = 0
    /// Pages that QEMU sent and that never travelled, since newer content replaced them. A total.
    public var absorbedPages: UInt64 = 0
}

extension Atomic where Value == UInt64 {
    func add(_ value: Int) { wrappingAdd(UInt64(value), ordering: .relaxed) }
    func set(_ value: UInt64) { store(value, ordering: .relaxed) }
    var now: UInt64 { load(ordering: .relaxed) }
}

/// A flow's totals at one moment.
public struct FlowSample: Sendable, Equatable {
    public var zeroPages: UInt64 = 0
    public var rawPages: UInt64 = 0
    public var lz4Pages: UInt64 = 0
    public var lz4Bytes: UInt64 = 0
    public var zstdPages: UInt64 = 0
    public var zstdBytes: UInt64 = 0
    /// Pages sent as their changed lines.
    public var linePages: UInt64 = 0
    public var changedLines: UInt64 = 0
    /// Bytes of the frames that carried them.
    public var lineBytes: UInt64 = 0
    /// Pages not sent again because nothing in them had changed.
    public var samePages: UInt64 = 0
    /// Pages that `verifies` has compared, and those of them that differed and were sent again.
    public var auditedPages: UInt64 = 0
    public var repairedPages: UInt64 = 0
    /// Pages that the destination read on a disk, or in its snapshot of the VM; pages it was referred to and could not
    /// find there, and pages that it did not answer for in time: these travelled after all.
    public var diskPages: UInt64 = 0
    public var snapshotPages: UInt64 = 0
    public var refusedPages: UInt64 = 0
    public var unansweredPages: UInt64 = 0
    /// Pages whose answer is waited for.
    public var waitingPages: UInt64 = 0
    /// Bytes of the frames that referred to them.
    public var referenceBytes: UInt64 = 0
    /// Times that references were found not to pay, and were left out for a while.
    public var referenceClosures: UInt64 = 0
    /// Memory that the hashes of lines take, bytes.
    public var lineTableBytes: UInt64 = 0
    /// Bytes on the link in this direction: lanes and control connection, frames included.
    public var wireBytes: UInt64 = 0
    /// Lane bytes sent and not yet confirmed as installed.
    public var unconfirmedBytes: UInt64 = 0
    /// Lane bytes that are settled: installed, or lost with a connection.
    public var settledBytes: UInt64 = 0
    public var cpuNs: UInt64 = 0
    /// Sum of the lanes' estimates of their link shares.
    public var linkBytesPerS: UInt64 = 0
    /// A direct source's rounds; nil: QEMU knows.
    public var rounds: RoundSample?
    /// The stream port's hot pages; nil: it keeps none back.
    public var hold: HoldSample?
    public init() {}

    /// Pages of data that travelled, in whatever form.
    public var dataPages: UInt64 { rawPages + lz4Pages + zstdPages + linePages + samePages }

    /// What plain QEMU would have put on the link for the same pages: 8 bytes and the page, or 9 for a zero page.
    public var plainBytes: UInt64 {
        (dataPages + referredPages + (hold?.absorbedPages ?? 0)) * 4104 + zeroPages * 9
    }

    /// Pages that were found elsewhere.
    public var referredPages: UInt64 { diskPages + snapshotPages }
    /// What references to so many pages took on the link.
    public func bytesOfReferences(_ pages: UInt64) -> UInt64 {
        referredPages == 0 ? 0 : UInt64(Double(referenceBytes) * Double(pages) / Double(referredPages))
    }
    /// Bytes of pages that travelled: what the next pages will cost is to be told from these.
    public var literalBytes: UInt64 { wireBytes - min(referenceBytes, wireBytes) }

    /// Adds what another flow of the same job has sent.
    public mutating func add(_ other: FlowSample) {
        zeroPages += other.zeroPages
        rawPages += other.rawPages
        lz4Pages += other.lz4Pages
        lz4Bytes += other.lz4Bytes
        zstdPages += other.zstdPages
        zstdBytes += other.zstdBytes
        wireBytes += other.wireBytes
        cpuNs += other.cpuNs
    }

    mutating func add(_ lane: LaneCounters) {
        zeroPages += lane.zeroPages.now
        rawPages += lane.rawPages.now
        lz4Pages += lane.lz4Pages.now
        lz4Bytes += lane.lz4Bytes.now
        zstdPages += lane.zstdPages.now
        zstdBytes += lane.zstdBytes.now
        linePages += lane.linePages.now
        changedLines += lane.changedLines.now
        lineBytes += lane.lineBytes.now
        samePages += lane.samePages.now
        diskPages += lane.diskPages.now
        snapshotPages += lane.snapshotPages.now
        refusedPages += lane.refusedPages.now
        unansweredPages += lane.unansweredPages.now
        waitingPages += lane.waitingPages.now
        referenceBytes += lane.referenceBytes.now
        referenceClosures += lane.referenceClosures.now
        auditedPages += lane.auditedPages.now
        repairedPages += lane.repairedPages.now
        lineTableBytes += lane.lineTableBytes.now
        wireBytes += lane.wireBytes.now
        settledBytes += min(lane.confirmedBytes.now, lane.wireBytes.now)
        unconfirmedBytes += lane.wireBytes.now &- min(lane.confirmedBytes.now, lane.wireBytes.now)
        cpuNs += lane.cpuNs.now
        linkBytesPerS += lane.linkBytesPerS.now
    }
}
