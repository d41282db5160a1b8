// Also compiled into the fuzzer (Fuzz/run.sh): no Foundation, no Testing here.
import ApusSystem

@testable import ApusWire

/// A deterministic source of numbers (SplitMix64); every failure names its seed.
struct Seed {
    private var state: UInt64

    init(_ seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }

    mutating func below(_ bound: Int) -> Int { Int(next() % UInt64(bound)) }
}

/// One element as a test wants to see it.
struct Seen: Equatable {
    var element: StreamElement
    var bytes: [UInt8]
}

/// Feeds a reader from an array that grows in pieces, and checks the contract of `next` on the way.
struct Feeder {
    var reader: QemuStreamReader
    var seen: [Seen] = []
    private var pending: [UInt8] = []
    private var start = 0

    init(_ reader: QemuStreamReader = QemuStreamReader()) { self.reader = reader }

    var left: Int { pending.count - start }

    /// Gives more bytes and reads all elements that are complete. Consecutive opaque bytes are joined.
    mutating func feed(_ bytes: some Sequence<UInt8>) throws {
        if start > 1 << 16 {
            pending.removeFirst(start)
            start = 0
        }
        pending.append(contentsOf: bytes)
        // A copy, because a span of a member forbids changes to all the others.
        let pending = pending
        var start = start
        defer { self.start = start }
        while true {
            let span = pending.span.rawBytes.extracting(start..<pending.count)
            switch try reader.next(span) {
            case .needMore(let want):
                guard want > span.byteCount else { throw ContractBroken.wantsWhatItHas(want, span.byteCount) }
                guard want - span.byteCount <= StreamLimits.elementBytesMax else {
                    throw ContractBroken.wantsTooMuch(want)
                }
                return
            case .element(let element, let length):
                guard length <= span.byteCount else { throw ContractBroken.tookMoreThanThereWas(length) }
                let bytes = Array(pending[start..<start + length])
                if let last = seen.indices.last, element == seen[last].element, element.isOpaque {
                    seen[last].bytes += bytes
                } else {
                    seen.append(Seen(element: element, bytes: bytes))
                }
                start += length
            }
        }
    }

    enum ContractBroken: Error { case wantsWhatItHas(Int, Int), wantsTooMuch(Int), tookMoreThanThereWas(Int) }

    /// Everything at once.
    static func read(_ bytes: [UInt8], with reader: QemuStreamReader = QemuStreamReader()) throws -> Feeder {
        var feeder = Feeder(reader)
        try feeder.feed(bytes)
        return feeder
    }
}

extension StreamElement {
    var isOpaque: Bool { self == .deviceBytes || self == .vmDescriptionBytes }

    var isPageRecord: Bool {
        switch self {
        case .page, .zero, .xbzrle, .compressed: true
        case .header, .configuration, .sectionStart, .sectionPart, .sectionEnd, .sectionFull, .footer, .blockList,
            .multifdFlush,
            .endOfRecords, .bitmapChunk, .command, .packageEnd, .deviceBytes, .endOfFile, .vmDescription,
            .vmDescriptionBytes,
            .end:
            false
        }
    }
}

/// Puts a stream together again from its elements, through the writer wherever the writer has a word for it.
struct Rebuilder {
    var writer = QemuStreamWriter()
    var buffer = StreamBuffer()
    /// 7.2 with preempt names the block whenever it changes the channel; then the captured names are followed.
    let followsNames: Bool

    init(_ writer: QemuStreamWriter = QemuStreamWriter(), followsNames: Bool = false) {
        self.writer = writer
        self.followsNames = followsNames
    }

    mutating func rebuild(_ seen: Seen, reader: QemuStreamReader) {
        let bytes = seen.bytes.span.rawBytes
        if followsNames, seen.element.isPageRecord, seen.bytes[7] & 0x20 == 0 { writer.forgetBlock() }
        switch seen.element {
        case .header: writer.header(machine: reader.machine, to: &buffer)
        case .configuration(.targetPageBits(let bits)): writer.targetPageBits(bits, to: &buffer)
        case .configuration(.capabilities):
            writer.capabilities(reader.ignoresShared ? ["x-ignore-shared"] : [], to: &buffer)
        case .configuration(.uuid): writer.uuid(bytes.extracting(last: 16), to: &buffer)
        case .sectionStart(let head):
            writer.sectionStart(id: head.id, name: name(head, seen), version: head.version, to: &buffer)
        case .sectionFull(let head):
            writer.sectionFull(
                id: head.id, name: name(head, seen), instance: head.instance, version: head.version, to: &buffer)
        case .sectionPart(let id, _): writer.sectionPart(id: id, to: &buffer)
        case .sectionEnd(let id, _): writer.sectionEnd(id: id, to: &buffer)
        case .footer(let id): writer.footer(id: id, to: &buffer)
        case .blockList: writer.blockList(reader.table, withAddresses: reader.ignoresShared, to: &buffer)
        case .page(let block, let offset):
            writer.page(block: block, offset: offset, to: &buffer)
            buffer.append(bytes.extracting(last: 4096))
        case .zero(let block, let offset): writer.zero(block: block, offset: offset, to: &buffer)
        case .xbzrle(let block, let offset, let length):
            writer.xbzrle(block: block, offset: offset, dataLength: length, to: &buffer)
            buffer.append(bytes.extracting(last: length))
        case .compressed(let block, let offset, let length):
            writer.compressed(block: block, offset: offset, dataLength: length, to: &buffer)
            buffer.append(bytes.extracting(last: length))
        case .multifdFlush: writer.multifdFlush(to: &buffer)
        case .endOfRecords: writer.endOfRecords(to: &buffer)
        case .command(.postcopyDiscard(let block, let ranges)):
            let list = (0..<ranges).map { PageRange(discard: bytes, index: $0, of: ranges) }
            writer.discard(block: block, ranges: list, to: &buffer)
        case .command(.unknown): buffer.append(bytes)
        case .command(let command): writer.command(command, to: &buffer)
        case .packageEnd: writer.forgetBlock()
        case .endOfFile: writer.endOfFile(to: &buffer)
        case .vmDescription(let length): writer.vmDescription(length: UInt32(length), to: &buffer)
        case .bitmapChunk, .deviceBytes, .vmDescriptionBytes: buffer.append(bytes)
        case .end: break
        }
    }

    private func name(_ head: SectionHead, _ seen: Seen) -> String {
        String(decoding: seen.bytes[6..<6 + head.nameLength], as: UTF8.self)
    }
}

extension StreamBuffer {
    /// A copy of what was written.
    var array: [UInt8] {
        let bytes = bytes
        return (0..<bytes.byteCount).map { bytes.byte(at: $0) }
    }
}

extension ConnectionKind {
    /// The initialiser for arrays; a span of a temporary inside `#expect` breaks the compiler (6.3.1).
    static func told(by bytes: [UInt8]) -> ConnectionKind? { ConnectionKind(firstBytes: bytes.span.rawBytes) }
}
