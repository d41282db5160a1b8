internal import CApus
internal import Glibc
internal import Synchronization

/// Memory of another process with pages missing: whoever touches one there waits until it is filled from here.
///
///     enter    journal ─▶ injected userfaultfd() ─▶ number into journal ─▶ fetch
///     arm      register: from now on a hole is not zeros, but a question
///     serve    touched hole ─▶ event ─▶ fill, which is atomic: a page that is there is never overwritten
///     leave    unregister ─▶ injected close() ─▶ journal removed                 only with nothing missing any more
///
/// The descriptor stays open inside the process: when we are killed, whoever touches a hole waits, and a successor goes on
/// (``takeOver(journal:)``). Were it closed with pages missing, the process would silently read zeros.
public final class Pager: Sendable {
    public typealias Area = WriteTracker.Area

    public let pid: Int32
    public let areas: [Area]
    private let journal: String
    private let injector: Injector
    /// Our copy of the descriptor.
    private let faults: Descriptor
    private let isInside = Mutex(true)

    /// Questions that are taken out at once.
    public static let faultsAtOnce = 32

    private init(_ record: InjectionJournal, journal: String, _ injector: Injector, faults: Descriptor) {
        pid = record.pid
        areas = record.areas
        self.journal = journal
        self.injector = injector
        self.faults = faults
    }

    /// Puts a userfaultfd into a running process; nothing waits for it before ``arm()``.
    ///
    /// - Parameter journal: as for ``WriteTracker/attach(pid:areas:journal:)``.
    /// - Throws: `InjectionError`; nothing is left behind then, and no journal.
    public static func enter(pid: Int32, areas: [Area], journal: String) throws(InjectionError) -> Pager {
        precondition(areas.allSatisfy { $0.address % 4096 == 0 && $0.byteCount % 4096 == 0 && $0.byteCount > 0 })
        let injector = try Injector.open(pid: pid)
        var record = InjectionJournal(pid: pid, startTicks: injector.startTicks)
        record.known = Foreign.userfaultfds(of: pid)
        record.areas = areas
        try record.create(journal)
        do throws(InjectionError) {
            let number = try InjectedFaults.open(injector, &record, journal)
            record.descriptor = number
            try record.update(journal)
            let faults = try injector.copy(descriptor: number)
            let error = capus_fault_begin_filling(faults.number)
            guard error == 0 else { throw .refused(pid: pid, SystemError("UFFDIO_API", code: error)) }
            return Pager(record, journal: journal, injector, faults: faults)
        } catch {
            try? InjectedFaults.takeOut(record, journal, unregistering: false)
            throw error
        }
    }

    /// Goes on where an agent that died has stopped. Who waits is woken, and asks again: what the dead one had read was
    /// lost with it.
    ///
    /// - Returns: nil: there is no journal, so nothing is missing there.
    /// - Throws: `InjectionError`; the journal stays.
    public static func takeOver(journal: String) throws(InjectionError) -> Pager? {
        guard let record = try InjectionJournal.read(journal) else { return nil }
        let injector = try Injector.open(pid: record.pid)
        guard injector.startTicks == record.startTicks else { throw .processGone(pid: record.pid) }
        guard let number = record.descriptor, Foreign.left(by: record) == [number] else {
            throw .unsuited("Process \(record.pid) does not hold the userfaultfd that \(journal) tells of")
        }
        let pager = Pager(record, journal: journal, injector, faults: try injector.copy(descriptor: number))
        for area in pager.areas { _ = capus_fault_wake(pager.faults.number, area.address, area.byteCount) }
        return pager
    }

    /// From now on every touch of a missing page is a question.
    public func arm() throws(InjectionError) {
        for area in areas {
            let error = capus_fault_register_missing(faults.number, area.address, area.byteCount)
            if error == EBUSY { throw .memoryTaken(pid: pid) }
            if error == ESRCH { throw .processGone(pid: pid) }
            guard error == 0 else { throw .refused(pid: pid, SystemError("UFFDIO_REGISTER", code: error)) }
        }
    }

    /// Drops pages of private memory, so that they are missing; those of a file go with ``GuestWindow/punch(at:byteCount:)``.
    /// Pages of zeros in between may go with them: a touch of one is a question then, whose answer is zeros.
    ///
    /// ```
    ///   there        D D 0 0 0 . . 0 0 D . .       D: data, 0: the page of zeros, a huge one mostly, .: nothing
    ///   ranges           ###   #     #     #
    ///   dropped          |---------|               in one call, for each stops a thread of the process
    /// ```
    ///
    /// - Parameter ranges: whole pages of the process, each within one area, ascending within it.
    public func empty(_ ranges: [Area]) throws(InjectionError) {
        var calls: [InjectedCall] = []
        do throws(SystemError) {
            let scan = try PageScan.open(pid: pid)
            var joined: Area?
            for range in ranges {
                check(range)
                if let open = joined, try canJoin(open, range, scan) {
                    joined = Area(address: open.address, byteCount: range.address + range.byteCount - open.address)
                } else {
                    if let open = joined, try scan.finds(.there, in: open) {
                        calls.append(.advise(open, MADV_DONTNEED))
                    }
                    joined = range
                }
            }
            if let open = joined, try scan.finds(.there, in: open) { calls.append(.advise(open, MADV_DONTNEED)) }
        } catch { throw error.code == ESRCH ? .processGone(pid: pid) : .refused(pid: pid, error) }
        try injector.call(calls)
    }

    /// Nothing between the two would be lost.
    private func canJoin(_ first: Area, _ second: Area, _ scan: borrowing PageScan) throws(SystemError) -> Bool {
        let end = first.address + first.byteCount
        guard area(of: first.address) == area(of: second.address), second.address >= end else { return false }
        if second.address == end { return true }
        return try !scan.finds(.populated, in: Area(address: end, byteCount: second.address - end))
    }

    private func area(of address: UInt64) -> Int? {
        areas.firstIndex { $0.address <= address && address < $0.address + $0.byteCount }
    }

    private func check(_ range: Area) {
        guard let area = area(of: range.address) else { preconditionFailure("a range lies in an area") }
        check(area, at: range.address - areas[area].address, range.byteCount)
    }

    /// Fills whole pages at `offset` of an area and wakes who waits for them. Pages that are there stay as they are.
    ///
    /// - Throws: `SystemError`; `ESRCH` when the process has gone.
    public func fill(_ area: Int, at offset: UInt64, _ bytes: RawSpan) throws(SystemError) {
        check(area, at: offset, UInt64(bytes.byteCount))
        // SAFETY: the kernel reads `byteCount` bytes of a span that outlives the call.
        let error = unsafe bytes.withUnsafeBytes {
            unsafe capus_fault_fill(faults.number, areas[area].address + offset, $0.baseAddress, UInt64($0.count))
        }
        guard error == 0 else { throw SystemError("UFFDIO_COPY", code: error) }
    }

    /// As ``fill(_:at:_:)``, with zeros.
    public func fillZero(_ area: Int, at offset: UInt64, byteCount: Int) throws(SystemError) {
        check(area, at: offset, UInt64(byteCount))
        let error = capus_fault_fill(faults.number, areas[area].address + offset, nil, UInt64(byteCount))
        guard error == 0 else { throw SystemError("UFFDIO_ZEROPAGE", code: error) }
    }

    /// Wakes who waits for pages that a ``FileFiller`` has put into the file. Whoever begins to wait for one afterwards asks.
    public func wake(_ area: Int, at offset: UInt64, byteCount: Int) {
        check(area, at: offset, UInt64(byteCount))
        _ = capus_fault_wake(faults.number, areas[area].address + offset, UInt64(byteCount))
    }

    /// Calls `body` for each run of pages that are in the process's page tables: those that it has used, and those of ``fill(_:at:_:)``.
    public func eachUsed(_ body: (_ area: Int, _ offset: UInt64, _ byteCount: UInt64) -> Void) throws(SystemError) {
        let scan = try PageScan.open(pid: pid)
        for (index, area) in areas.enumerated() {
            try scan.each(.present, in: area) { body(index, $0 - area.address, $1) }
        }
    }

    /// Calls `body` for each page that somebody waits for, as far as they are known.
    ///
    /// - Parameter waitMs: how long to wait for the first; 0: not at all.
    /// - Returns: how many there were.
    public func takeFaults(waitMs: Int, _ body: (_ area: Int, _ offset: UInt64) -> Void) throws(SystemError) -> Int {
        if waitMs > 0 {
            let ready = capus_fault_wait(faults.number, Int32(waitMs))
            guard ready >= 0 else { throw SystemError("poll", code: -ready) }
            if ready == 0 { return 0 }
        }
        var pages = InlineArray<32, UInt64>(repeating: 0)
        var room = pages.mutableSpan
        // SAFETY: the kernel fills at most `faultsAtOnce` words, and says how many.
        let count = unsafe room.withUnsafeMutableBufferPointer { words in
            guard let first = words.baseAddress else { return Int64(0) }
            return unsafe capus_fault_next(faults.number, first, Self.faultsAtOnce)
        }
        guard count >= 0 else { throw SystemError("read", code: Int32(-count)) }
        for index in 0..<Int(count) {
            let page = pages[index]
            guard let area = areas.firstIndex(where: { page >= $0.address && page < $0.address + $0.byteCount }) else {
                continue
            }
            body(area, page - areas[area].address)
        }
        return Int(count)
    }

    /// Takes everything out of the process again: holes are zeros from then on. A process that has gone is no error; the
    /// second call does nothing.
    ///
    /// - Throws: `InjectionError`; the journal stays, for another try.
    public func leave() throws(InjectionError) {
        try isInside.withLock { isInside throws(InjectionError) in
            guard isInside else { return }
            InjectedFaults.unregister(faults, areas)
            try WriteTracker.cleanUp(journal: journal)
            isInside = false
        }
    }

    private func check(_ area: Int, at offset: UInt64, _ count: UInt64) {
        precondition(count > 0 && count % 4096 == 0 && offset % 4096 == 0)
        precondition(offset <= areas[area].byteCount && count <= areas[area].byteCount - offset)
    }
}

/// Words in a file that outlive this process: mapped, so that a store is there for a successor at once.
// @unchecked: the mapping is immutable; who stores, and when, is the owner's to order.
@safe public final class WordFile: @unchecked Sendable {
    private let base: UnsafeMutableRawPointer
    public let wordCount: Int

    /// Opens a file of `wordCount` words, or makes one, all zeros.
    public init(_ path: String, wordCount: Int) throws(SystemError) {
        precondition(wordCount > 0)
        let number = try retrying("open") { unsafe Int(capus_open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)) }
        let file = Descriptor(owning: Int32(number))
        _ = try retrying("ftruncate") { Int(ftruncate(file.number, off_t(wordCount * 8))) }
        let address = unsafe mmap(nil, wordCount * 8, PROT_READ | PROT_WRITE, MAP_SHARED, file.number, 0)
        guard let address = unsafe address, unsafe address != MAP_FAILED else { throw SystemError.last("mmap") }
        unsafe base = address
        self.wordCount = wordCount
    }

    deinit { unsafe munmap(base, wordCount * 8) }

    /// One word; a store is whole or not at all.
    public subscript(index: Int) -> UInt64 {
        get {
            precondition(index >= 0 && index < wordCount)
            return unsafe base.load(fromByteOffset: index * 8, as: UInt64.self)
        }
        set {
            precondition(index >= 0 && index < wordCount)
            unsafe base.storeBytes(of: newValue, toByteOffset: index * 8, as: UInt64.self)
        }
    }
}
