import ApusSystem

@testable import ApusWire

// libFuzzer target for everything in ApusWire/Qemu that reads what a peer sent. See Fuzz/run.sh.
//
//   byte 0    what is read: 0 main, 1 main behind a block list, 2 recovery, 3 preempt, 4 return path, 5 XBZRLE,
//             6 first bytes of a connection; modulo 7
//   byte 1    seed of how the rest is cut into pieces
//   rest      the bytes of the peer
//
// A crash is a finding. So is a reader that breaks its contract (Feeder), that reports other elements when the bytes
// come in pieces, or whose elements do not make the same bytes again.

@_cdecl("LLVMFuzzerTestOneInput")
public func fuzz(_ start: UnsafePointer<UInt8>, _ count: Int) -> CInt {
    guard count >= 2 else { return 0 }
    let input = unsafe [UInt8](UnsafeBufferPointer(start: start, count: count))
    let bytes = Array(input[2...])
    switch input[0] % 7 {
    case 0: stream(QemuStreamReader(), bytes, seed: input[1])
    case 1: stream(Known.main, bytes, seed: input[1])
    case 2: stream(QemuStreamReader(recovering: Known.main), bytes, seed: input[1])
    case 3: stream(QemuStreamReader(preemptChannelOf: Known.main), bytes, seed: input[1])
    case 4: returnPath(bytes, seed: input[1])
    case 5: xbzrle(bytes)
    default: _ = ConnectionKind.told(by: bytes)
    }
    return 0
}

/// A reader that has read a header, START of ram (id 2) and of dirty-bitmap (id 3), and two blocks.
private enum Known {
    static let main: QemuStreamReader = {
        var writer = QemuStreamWriter()
        var buffer = StreamBuffer()
        writer.header(machine: "pc-q35-7.2", to: &buffer)
        writer.sectionStart(id: 3, name: "dirty-bitmap", version: 1, to: &buffer)
        buffer.append(UInt8(1))
        writer.footer(id: 3, to: &buffer)
        writer.sectionStart(id: 2, name: "ram", version: 4, to: &buffer)
        let blocks = [RamBlock(name: "a", usedLength: 0x10_0000), RamBlock(name: "bb", usedLength: 0x2000)]
        guard let table = try? RamBlockTable(blocks) else { fatalError("The blocks are sound") }
        writer.blockList(table, withAddresses: false, to: &buffer)
        writer.endOfRecords(to: &buffer)
        writer.footer(id: 2, to: &buffer)
        writer.sectionPart(id: 2, to: &buffer)
        guard let feeder = try? Feeder.read(buffer.array), feeder.left == 0 else { fatalError("The stream is sound") }
        return feeder.reader
    }()
}

private func stream(_ reader: QemuStreamReader, _ bytes: [UInt8], seed: UInt8) {
    var whole = Feeder(reader)
    let refusal = read(&whole, bytes, piecesUpTo: .max, seed: seed)
    var cut = Feeder(reader)
    let cutRefusal = read(&cut, bytes, piecesUpTo: 33, seed: seed)
    guard refusal == cutRefusal else {
        fatalError("Whole: \(String(describing: refusal)), cut: \(String(describing: cutRefusal))")
    }
    guard whole.seen == cut.seen else { fatalError("Other elements when cut") }
    guard whole.reader.position - reader.position == UInt64(whole.seen.reduce(0) { $0 + $1.bytes.count }) else {
        fatalError("Wrong position")
    }
    rebuild(whole, table: reader.table)
}

private func read(_ feeder: inout Feeder, _ bytes: [UInt8], piecesUpTo size: Int, seed: UInt8) -> StreamError? {
    var random = Seed(UInt64(seed))
    do {
        var at = 0
        while at < bytes.count {
            let end = at + min(bytes.count - at, size == .max ? size : 1 + random.below(size))
            try feeder.feed(bytes[at..<end])
            at = end
        }
        return nil
    } catch let error as StreamError {
        return error
    } catch {
        fatalError("\(error)")
    }
}

private func rebuild(_ feeder: Feeder, table: RamBlockTable) {
    var rebuilder = Rebuilder(QemuStreamWriter(table: table), followsNames: true)
    var expected: [UInt8] = []
    for seen in feeder.seen {
        switch seen.element {
        // What the writer does not write in every form that is readable.
        case .configuration(.capabilities): continue
        case .command(.postcopyDiscard(_, let ranges)) where ranges > QemuStreamWriter.discardRangesMax: continue
        case .compressed, .page, .zero, .xbzrle, .header, .configuration, .sectionStart, .sectionPart, .sectionEnd,
            .sectionFull,
            .footer, .blockList, .multifdFlush, .endOfRecords, .bitmapChunk, .command, .packageEnd, .deviceBytes,
            .endOfFile,
            .vmDescription, .vmDescriptionBytes, .end:
            expected += seen.bytes
            rebuilder.rebuild(seen, reader: feeder.reader)
        }
    }
    guard rebuilder.buffer.array == expected else { fatalError("The elements do not make the same bytes again") }
}

private func returnPath(_ bytes: [UInt8], seed: UInt8) {
    var random = Seed(UInt64(seed))
    var reader = ReturnPathReader(table: Known.main.table)
    var writer = ReturnPathWriter(table: Known.main.table)
    var buffer = StreamBuffer()
    var start = 0
    var given = 0
    while given < bytes.count {
        given = min(bytes.count, given + 1 + random.below(40))
        reading: while true {
            let span = bytes.span.rawBytes.extracting(start..<given)
            guard let step = try? reader.next(span) else { return }
            switch step {
            case .needMore(let want):
                guard want > span.byteCount, want < 600 else { fatalError("Wants \(want)") }
                break reading
            case .element(let message, let length):
                writer.write(message, to: &buffer)
                guard length <= span.byteCount else { fatalError("Took more than there was") }
                start += length
            }
        }
    }
}

private func xbzrle(_ bytes: [UInt8]) {
    var page = [UInt8](repeating: 0x55, count: 4096)
    var span = page.mutableSpan
    var target = span.rawBytes
    try? Xbzrle.apply(bytes.span.rawBytes, to: &target)
}
