internal import Synchronization

/// A piece whose copy is nearly up to date.
final class RebasePiece: Sendable {
    let tracker: WriteTracker
    private let calls: [InjectedCall]
    private let copier: Mutex<Copier>

    /// Rounds while the guest runs end when what is left takes about as long as stopping all threads does.
    private static let leftBytesMax: UInt64 = 4 << 20
    private static let roundsMax = 10

    private init(tracker: WriteTracker, calls: [InjectedCall], copier: consuming sending Copier) {
        self.tracker = tracker
        self.calls = calls
        self.copier = Mutex(copier)
    }

    static func copy(
        _ area: WriteTracker.Area, to file: Descriptor, at offset: UInt64, tracker: WriteTracker,
        calls: [InjectedCall]
    ) throws(InjectionError) -> RebasePiece {
        do throws(SystemError) {
            let piece = RebasePiece(
                tracker: tracker, calls: calls,
                copier: try Copier.make(pid: tracker.injector.pid, area: area, file: file, fileOffset: offset))
            try piece.copyWhileRunning()
            return piece
        } catch {
            throw .refused(pid: tracker.injector.pid, error)
        }
    }

    func exchange() throws(InjectionError) {
        try tracker.injector.callWhileStopped(calls) { [self] () throws(InjectionError) in
            do throws(SystemError) {
                _ = try copyWritten()
            } catch {
                throw .refused(pid: tracker.injector.pid, error)
            }
        }
    }

    private func copyWhileRunning() throws(SystemError) {
        try copier.withLock { copier throws(SystemError) in try copier.copyPopulated() }
        var before = UInt64.max
        for _ in 0..<Self.roundsMax {
            let bytes = try copyWritten()
            // A guest that writes as fast as we copy gets no better by waiting.
            if bytes < Self.leftBytesMax || bytes > before / 4 * 3 { return }
            before = bytes
        }
    }

    /// Bytes that had been written since the last time.
    private func copyWritten() throws(SystemError) -> UInt64 {
        try copier.withLock { copier throws(SystemError) in
            copier.runs.removeAll(keepingCapacity: true)
            try tracker.takeWritten { copier.runs.append(.init(address: $1, byteCount: $2)) }
            return try copier.copyRuns(skippingZeros: false)
        }
    }
}

/// Copies from private memory into the file that is to replace it.
private struct Copier: ~Copyable {
    private let window: ProcessWindow
    private let target: GuestWindow
    private let scan: PageScan
    private let area: WriteTracker.Area
    private var piece = PageBuffer(byteCount: 1 << 20)
    /// What is to be copied: offsets in the area.
    var runs: [WriteTracker.Area] = []

    static func make(
        pid: Int32, area: WriteTracker.Area, file: Descriptor, fileOffset: UInt64
    ) throws(SystemError) -> Copier {
        Copier(
            window: ProcessWindow(pid: pid, address: area.address, byteCount: area.byteCount),
            target: try GuestWindow(file, fileOffset: fileOffset, byteCount: area.byteCount),
            scan: try PageScan.open(pid: pid), area: area)
    }

    private init(window: ProcessWindow, target: GuestWindow, scan: consuming PageScan, area: WriteTracker.Area) {
        self.window = window
        self.target = target
        self.scan = scan
        self.area = area
    }

    /// The first pass, into holes of the file. Memory never used stays a hole in it.
    mutating func copyPopulated() throws(SystemError) {
        let start = area.address
        var found: [WriteTracker.Area] = []
        try scan.each(.populated, in: area) { found.append(.init(address: $0 - start, byteCount: $1)) }
        runs = found
        _ = try copyRuns(skippingZeros: true)
    }

    /// - Returns: bytes of all runs.
    mutating func copyRuns(skippingZeros: Bool) throws(SystemError) -> UInt64 {
        var total: UInt64 = 0
        for run in runs {
            var at = run.address
            let end = run.address + run.byteCount
            while at < end {
                let count = Int(min(end - at, UInt64(piece.byteCount)))
                try window.copyOut(at: at, byteCount: count, to: &piece, bufferOffset: 0)
                try install(count, at: at, skippingZeros: skippingZeros)
                at += UInt64(count)
            }
            total += run.byteCount
        }
        return total
    }

    private func install(_ count: Int, at offset: UInt64, skippingZeros: Bool) throws(SystemError) {
        var start = 0
        while start < count {
            if skippingZeros, piece.bytes.extracting(start..<start + 4096).isAllZero {
                start += 4096
                continue
            }
            var end = start + 4096
            while end < count, !skippingZeros || !piece.bytes.extracting(end..<end + 4096).isAllZero { end += 4096 }
            try target.installFresh(piece.bytes.extracting(start..<end), at: offset + UInt64(start))
            start = end
        }
    }
}
