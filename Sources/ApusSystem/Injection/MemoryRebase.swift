internal import Glibc
internal import Synchronization

/// Gives a running process a shared file in the place of private memory, at the same address and with the same bytes.
///
///     guest runs      WriteTracker on a piece ─▶ copy all of it ─▶ copy what was written      prepare
///     guest stopped   every thread in a ptrace stop ─▶ last copy                              exchange
///                     ─▶ mmap(MAP_FIXED | MAP_SHARED) over the piece ─▶ threads go on
///     guest runs      tracker out; then the next piece                                        close
///
/// In pieces, because the old pages are freed while everything stands still, some 20 ms a GiB, and because both are there
/// until then. A piece is what it was or in the file, whatever fails or is killed, with the same bytes; who begins again
/// goes on with those that are left.
///
/// The guest must be stopped by QEMU (`stop`), which also waits for its disk I/O: the kernel would put what a device
/// reads into the old pages. QEMU does not know of the file: it still takes the block for private, so `x-ignore-shared`
/// does not leave it out, and what the balloon gives back stays in the file. The pages are charged to the memory cgroup
/// of the caller.
public final class MemoryRebase: Sendable {
    /// Bytes of a piece: freed in some milliseconds.
    public static let pieceBytes: UInt64 = 256 << 20

    /// How the paths of such files begin in `/proc`.
    public static var filePrefix: String { Foreign.memoryFilePrefix }

    private let area: WriteTracker.Area
    private let pid: Int32
    private let journal: String
    private let advices: [Int32]
    private let state: Mutex<State>

    private struct State {
        /// The file, and its number inside the process.
        var file: (number: Int32, ours: Descriptor)?
        /// Offsets of the pieces that are still private, last one first.
        var due: [UInt64]
        var piece: RebasePiece?
        /// Some of the memory is in the file. As long as none is, the file goes with the tracker.
        var isMapped: Bool
    }

    private init(
        pid: Int32, area: WriteTracker.Area, journal: String, advices: [Int32], file: (Int32, Descriptor)?,
        due: [UInt64]
    ) {
        self.pid = pid
        self.area = area
        self.journal = journal
        self.advices = advices
        state = Mutex(State(file: file, due: due, isMapped: file != nil))
    }

    /// All of it: copies, has the guest stopped, changes the memory, has the guest resumed, once for each piece.
    ///
    /// - Parameters:
    ///   - area: one RAM block, as it is mapped.
    ///   - journal: see ``WriteTracker/attach(pid:areas:journal:)``; for ``WriteTracker/cleanUp(journal:)`` too.
    ///   - stopGuest: QMP `stop`; returns when the guest and its disks stand still.
    ///   - resumeGuest: QMP `cont`; called whenever `stopGuest` was, also after an error.
    /// - Returns: the file that the memory is in now. The process keeps a descriptor of it, so that it is found again.
    /// - Throws: `InjectionError`, or what the two closures throw.
    public static func run(
        pid: Int32, area: WriteTracker.Area, journal: String, stopGuest: () throws -> Void,
        resumeGuest: () throws -> Void
    ) throws -> Descriptor {
        let rebase = try begin(pid: pid, area: area, journal: journal)
        while try rebase.prepare() {
            defer { rebase.close() }
            let outcome = Result {
                try stopGuest()
                try rebase.exchange()
            }
            try resumeGuest()
            try outcome.get()
        }
        guard let file = rebase.file else { throw InjectionError.processGone(pid: pid) }
        return file
    }

    /// Looks at the memory only. The same steps as ``run(pid:area:journal:stopGuest:resumeGuest:)`` can then be taken one
    /// by one: ``prepare()``, stop the guest, ``exchange()``, resume it, ``close()``, until `prepare` says false.
    ///
    /// - Throws: `InjectionError`, `.unsuited` with the reason when this memory must stay what it is.
    public static func begin(
        pid: Int32, area: WriteTracker.Area, journal: String
    ) throws(InjectionError) -> MemoryRebase {
        precondition(area.address % 4096 == 0 && area.byteCount % 4096 == 0 && area.byteCount > 0)
        let memory = try RebasedMemory.examine(pid: pid, area: area)
        var file: (Int32, Descriptor)?
        if let number = memory.descriptor { file = (number, try Injector.open(pid: pid).copy(descriptor: number)) }
        return MemoryRebase(
            pid: pid, area: area, journal: journal, advices: memory.advices, file: file, due: memory.due.reversed())
    }

    /// nil: not made yet.
    public var file: Descriptor? { state.withLock { $0.file?.ours } }

    /// Copies the next piece while the guest runs, until little of it is left to copy.
    ///
    /// - Returns: false when all the memory is in the file.
    /// - Throws: `InjectionError`; of the piece, nothing is left behind then.
    public func prepare() throws(InjectionError) -> Bool {
        try state.withLock { state throws(InjectionError) in
            precondition(state.piece == nil)
            guard let offset = state.due.last else { return false }
            let part = WriteTracker.Area(
                address: area.address + offset, byteCount: min(Self.pieceBytes, area.byteCount - offset))
            let tracker = try WriteTracker.attach(pid: pid, areas: [part], journal: journal, rebases: true)
            do throws(InjectionError) {
                if state.file == nil { state.file = try makeFile(tracker.injector) }
                guard let file = state.file else { preconditionFailure("made above") }
                let calls: [InjectedCall] =
                    [.map(file.number, from: offset, at: part)] + advices.map { .advise(part, $0) }
                let piece = try RebasePiece.copy(part, to: file.ours, at: offset, tracker: tracker, calls: calls)
                state.piece = piece
                return true
            } catch {
                // What cannot be taken out now stays in the journal.
                try? tracker.detach()
                if !state.isMapped { state.file = nil }
                throw error
            }
        }
    }

    /// Puts the file in the place of the piece. The guest must be stopped. All threads of the process stand still for
    /// some milliseconds.
    ///
    /// - Throws: `InjectionError`; the memory is what it was then.
    public func exchange() throws(InjectionError) {
        try state.withLock { state throws(InjectionError) in
            guard let piece = state.piece else { preconditionFailure("nothing is prepared") }
            try piece.exchange()
            state.due.removeLast()
            state.isMapped = true
        }
    }

    /// Takes out of the process what is not its memory now: the tracker, and the file if no piece was exchanged. What
    /// cannot be taken out stays in the journal. To be called in any case, best when the guest runs again.
    public func close() {
        state.withLock { state in
            try? state.piece?.tracker.detach()
            state.piece = nil
            if !state.isMapped { state.file = nil }
        }
    }

    private func makeFile(_ injector: Injector) throws(InjectionError) -> (number: Int32, ours: Descriptor) {
        let number = Int32(try injector.call(.memoryFile()))
        let file = try injector.copy(descriptor: number)
        do throws(SystemError) {
            _ = try retrying("ftruncate") { Int(ftruncate(file.number, off_t(area.byteCount))) }
        } catch {
            throw .refused(pid: pid, error)
        }
        return (number, file)
    }
}
