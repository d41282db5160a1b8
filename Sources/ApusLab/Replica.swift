public import ApusSystem

/// A second copy of another process's memory, kept by copying what somebody says was written: proof that he tells all.
public struct Replica: ~Copyable {
    private let window: ProcessWindow
    private var bytes: PageBuffer
    private var piece = PageBuffer(byteCount: 1 << 20)

    public init(_ area: WriteTracker.Area, of pid: Int32) {
        window = ProcessWindow(pid: pid, address: area.address, byteCount: area.byteCount)
        bytes = PageBuffer(byteCount: Int(area.byteCount))
    }

    public mutating func copy(_ offset: UInt64, _ byteCount: UInt64) throws(SystemError) {
        try window.copyOut(at: offset, byteCount: Int(byteCount), to: &bytes, bufferOffset: Int(offset))
    }

    public mutating func copyAll() throws(SystemError) { try copy(0, window.byteCount) }

    /// Numbers of the pages that are not what the process has now.
    public mutating func wrongPages() throws(SystemError) -> [UInt64] {
        var wrong: [UInt64] = []
        for start in stride(from: 0, to: window.byteCount, by: piece.byteCount) {
            let count = min(piece.byteCount, Int(window.byteCount - start))
            try window.copyOut(at: start, byteCount: count, to: &piece, bufferOffset: 0)
            for at in stride(from: 0, to: count, by: 4096) {
                let mine = bytes.bytes.extracting(Int(start) + at..<Int(start) + at + 4096)
                if !mine.equals(piece.bytes.extracting(at..<at + 4096)) { wrong.append((start + UInt64(at)) / 4096) }
            }
        }
        return wrong
    }

    /// Pages of this copy that are not what the file has.
    public mutating func differences(from file: GuestWindow) -> Int {
        var different = 0
        for at in stride(from: 0, to: window.byteCount, by: 4096) {
            file.copyOut(at: at, byteCount: 4096, to: &piece, bufferOffset: 0)
            if !bytes.bytes.extracting(Int(at)..<Int(at) + 4096).equals(piece.bytes.extracting(0..<4096)) {
                different += 1
            }
        }
        return different
    }
}
