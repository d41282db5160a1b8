internal import CApus
internal import Glibc
internal import Synchronization

/// A userfaultfd of another process, held from here, that tells which of its pages were written.
///
///     attach   journal ─▶ injected userfaultfd() ─▶ number into journal ─▶ fetch ─▶ register, protect
///     round    PAGEMAP_SCAN: written pages, protected again in the same step; the process never waits for us
///     detach   unregister ─▶ injected close() ─▶ journal removed
///
/// Only writes through the process's own mapping are seen: not those of vhost-user back-ends or of this process, and not
/// what a device puts into pages that it was given before a round and finishes after it (O_DIRECT, VFIO).
public final class WriteTracker: Sendable {
    /// Memory of the other process, in whole pages.
    public struct Area: Sendable, Equatable {
        public var address: UInt64
        public var byteCount: UInt64
        public init(address: UInt64, byteCount: UInt64) {
            self.address = address
            self.byteCount = byteCount
        }
    }

    let areas: [Area]
    private let journal: String
    let injector: Injector
    /// Our copy of the descriptor.
    private let faults: Descriptor
    let scan: Mutex<PageScan>
    private let isAttached = Mutex(true)

    private init(
        areas: [Area], journal: String, injector: Injector, faults: Descriptor, scan: consuming sending PageScan
    ) {
        self.areas = areas
        self.journal = journal
        self.injector = injector
        self.faults = faults
        self.scan = Mutex(scan)
    }

    /// Puts a userfaultfd into a running process and protects the areas: from now on every write counts.
    ///
    /// Borrows a sleeping thread for some tens of microseconds, never a vCPU; blocks the caller for some milliseconds.
    /// - Parameter journal: a file on a disk that tells a successor what is inside the process; see ``cleanUp(journal:)``.
    /// - Throws: `InjectionError`; nothing is left behind then, and no journal.
    public static func attach(pid: Int32, areas: [Area], journal: String) throws(InjectionError) -> WriteTracker {
        try attach(pid: pid, areas: areas, journal: journal, rebases: false)
    }

    /// - Parameter rebases: a memory file will be made inside the process too, which goes with the tracker unless the
    ///   process has mapped it by then.
    static func attach(
        pid: Int32, areas: [Area], journal: String, rebases: Bool
    ) throws(InjectionError) -> WriteTracker {
        precondition(areas.allSatisfy { $0.address % 4096 == 0 && $0.byteCount % 4096 == 0 && $0.byteCount > 0 })
        let injector = try Injector.open(pid: pid)
        var record = InjectionJournal(pid: pid, startTicks: injector.startTicks)
        record.known = Foreign.userfaultfds(of: pid)
        record.areas = areas
        record.rebases = rebases
        try record.create(journal)
        do throws(InjectionError) {
            let number = try InjectedFaults.open(injector, &record, journal)
            record.descriptor = number
            try record.update(journal)
            let faults = try injector.copy(descriptor: number)
            try register(faults, areas, pid)
            let scan: PageScan
            do throws(SystemError) {
                scan = try PageScan.open(pid: pid)
            } catch {
                throw .refused(pid: pid, error)
            }
            return WriteTracker(areas: areas, journal: journal, injector: injector, faults: faults, scan: scan)
        } catch {
            // Not unregistered: what has the memory may be another's. What cannot be closed now stays in the journal.
            try? InjectedFaults.takeOut(record, journal, unregistering: false)
            throw error
        }
    }

    /// Calls `body` for each run of pages written since ``attach(pid:areas:journal:)`` or the last call, ascending, and
    /// protects them again in the same atomic step.
    ///
    /// - Throws: `SystemError`; `ESRCH` when the process has gone, `EPERM` when the memory is no longer tracked. What
    ///   was reported before the error is no longer due.
    public func takeWritten(
        _ body: (_ area: Int, _ offset: UInt64, _ byteCount: UInt64) -> Void
    ) throws(SystemError) {
        try scan.withLock { scan throws(SystemError) in
            for (index, area) in areas.enumerated() {
                try scan.each(.written, in: area, protecting: true) { body(index, $0 - area.address, $1) }
            }
        }
    }

    /// As ``takeWritten(_:)``, without protecting again.
    public func eachWritten(
        _ body: (_ area: Int, _ offset: UInt64, _ byteCount: UInt64) -> Void
    ) throws(SystemError) {
        try scan.withLock { scan throws(SystemError) in
            for (index, area) in areas.enumerated() {
                try scan.each(.written, in: area) { body(index, $0 - area.address, $1) }
            }
        }
    }

    /// Bytes written since then, without protecting again.
    public func writtenBytes() throws(SystemError) -> UInt64 {
        var total: UInt64 = 0
        try eachWritten { total += $2 }
        return total
    }

    /// Takes everything out of the process again and removes the journal. A process that has gone is no error; the
    /// second call does nothing.
    ///
    /// - Throws: `InjectionError`; writes are no longer tracked then, but the descriptor and the journal stay, for
    ///   another try or a successor.
    public func detach() throws(InjectionError) {
        try isAttached.withLock { isAttached throws(InjectionError) in
            guard isAttached else { return }
            InjectedFaults.unregister(faults, areas)
            try Self.cleanUp(journal: journal)
            isAttached = false
        }
    }

    /// Takes out of a living process what a dead agent left in it, and removes the journal. No journal, no process, or
    /// nothing in it: nothing to do.
    ///
    /// - Throws: `InjectionError`; the journal stays, for another try.
    public static func cleanUp(journal: String) throws(InjectionError) {
        guard let record = try InjectionJournal.read(journal) else { return }
        if record.opensSysctl { Sysctl.unprivilegedFaults.write(false) }
        // Without a number, its maker did not get as far as to register.
        try InjectedFaults.takeOut(record, journal, unregistering: record.descriptor != nil)
    }

    /// Why this host cannot do it at all; nil: it can. Tries everything on a page of its own, in well under a
    /// millisecond, and touches no other process.
    public static func hostLacks() -> String? {
        #if arch(x86_64)
            if (try? ProcFile.read("/proc/sys/kernel/yama/ptrace_scope"))?.hasPrefix("3") == true {
                return "kernel.yama.ptrace_scope is 3: nobody may enter another process until the next boot"
            }
            let error = capus_fault_probe()
            return switch error {
            case 0: nil
            case EINVAL, ENOTTY: InjectionError.kernelLacks("asynchronous write tracking").description
            case EPERM, ENOSYS:
                "userfaultfd is not allowed here (\(SystemError("userfaultfd", code: error).reason)): the agent must run "
                    + "as root with CAP_SYS_PTRACE, outside a seccomp filter that forbids it"
            default: "userfaultfd does not work here: \(SystemError("userfaultfd", code: error).reason)"
            }
        #else
            return "only x86-64 is supported"
        #endif
    }

    private static func register(_ faults: Descriptor, _ areas: [Area], _ pid: Int32) throws(InjectionError) {
        let error = capus_fault_begin(faults.number)
        guard error == 0 else {
            throw error == EINVAL
                ? .kernelLacks("asynchronous write tracking")
                : .refused(pid: pid, SystemError("UFFDIO_API", code: error))
        }
        for area in areas {
            let error = capus_fault_register(faults.number, area.address, area.byteCount)
            if error == EBUSY { throw .memoryTaken(pid: pid) }
            if error == ESRCH { throw .processGone(pid: pid) }
            guard error == 0 else { throw .refused(pid: pid, SystemError("UFFDIO_REGISTER", code: error)) }
        }
        for area in areas {
            let error = capus_fault_protect(faults.number, area.address, area.byteCount)
            if error == ESRCH { throw .processGone(pid: pid) }
            guard error == 0 else { throw .refused(pid: pid, SystemError("UFFDIO_WRITEPROTECT", code: error)) }
        }
    }
}
