import ApusCodec
import ApusMemory
import ApusSystem

// libFuzzer target for what arrives on a lane: batches and updates. See Fuzz/run.sh.
//
//   byte 0    lanes, 1 to 4, and which of them
//   then      frames: u8 kind (bit 0: update), u16 length, payload
//
// A crash is a finding. So is an update that is refused after something was written, or one applied to a page that no
// batch has made whole.

@_cdecl("LLVMFuzzerTestOneInput")
public func fuzz(_ start: UnsafePointer<UInt8>, _ count: Int) -> CInt {
    guard count >= 1 else { return 0 }
    let input = unsafe [UInt8](UnsafeBufferPointer(start: start, count: count))
    let lanes = 1 + Int(input[0] & 3)
    let share = LaneShare(lane: Int(input[0] >> 2) % lanes, lanes: lanes)
    guard let layout = try? Layout([("ram", 4 << 20), ("rom", 64 << 10)]) else { return 0 }
    var batches = BatchDecoder(layout: layout, share)
    var updates = UpdateDecoder(layout: layout)
    var replica = ReplicaMap(share)
    var memory = CheckedMemory(layout)
    var at = 1
    while at + 3 <= input.count {
        let length = min(Int(input[at + 1]) | Int(input[at + 2]) << 8, input.count - at - 3)
        let payload = Array(input[at + 3..<at + 3 + length])
        if input[at] & 1 == 0 {
            _ = try? batches.decode(payload.rawBytes, &replica, into: &memory)
        } else {
            let before = memory.writes
            do { _ = try updates.decode(payload.rawBytes, &replica, into: &memory) } catch {
                guard memory.writes == before else { fatalError("Refused after writing: \(error)") }
            }
        }
        at += 3 + length
    }
    return 0
}

/// Knows which pages are there.
private struct CheckedMemory: PageInstaller {
    let patchable: PageRanges
    private var isWhole: [Bool]
    private(set) var writes = 0

    init(_ layout: Layout) {
        isWhole = [Bool](repeating: false, count: Int(layout.pageCount))
        var ranges = PageRanges()
        ranges.append(0..<layout.blocks[0].pageCount)
        patchable = ranges
    }
    mutating func installZero(first: PageNumber, count: Int) {
        for page in Int(first)..<Int(first) + count { isWhole[page] = true }
    }
    mutating func install(first: PageNumber, _ bytes: RawSpan) {
        for page in Int(first)..<Int(first) + bytes.byteCount / 4096 { isWhole[page] = true }
    }
    mutating func patch(_ page: PageNumber, mask: UInt32, lineBytes: Int, _ bytes: RawSpan) {
        guard isWhole[Int(page)], patchable.contains(page) else { fatalError("Page \(page) was never whole") }
        guard bytes.byteCount == mask.nonzeroBitCount * lineBytes else { fatalError("Wrong lines") }
        writes += 1
    }
}
