internal import CApus
internal import Glibc

/// A userfaultfd that another process has been made to open: how it gets in, and how it gets out again.
enum InjectedFaults {
    /// Makes the process open a userfaultfd; root's switch for processes without CAP_SYS_PTRACE is open for the moment of the call.
    ///
    /// - Returns: its number in the process.
    static func open(
        _ injector: Injector, _ record: inout InjectionJournal, _ journal: String
    ) throws(InjectionError) -> Int32 {
        do throws(InjectionError) {
            return Int32(try injector.call(.userfaultfd()))
        } catch {
            guard case .refused(_, let reason) = error, reason.code == EPERM,
                Sysctl.unprivilegedFaults.isOn == false
            else { throw error }
            record.opensSysctl = true
            try record.update(journal)
            Sysctl.unprivilegedFaults.write(true)
            defer { Sysctl.unprivilegedFaults.write(false) }
            let number = Int32(try injector.call(.userfaultfd()))
            record.opensSysctl = false
            return number
        }
    }

    static func takeOut(
        _ record: InjectionJournal, _ journal: String, unregistering: Bool
    ) throws(InjectionError) {
        do throws(InjectionError) {
            let injector = try Injector.open(pid: record.pid)
            for number in injector.startTicks == record.startTicks ? Foreign.left(by: record) : [] {
                // Some kernels leave the protection on the pages when the descriptor is only closed.
                if unregistering { unregister(try injector.copy(descriptor: number), record.areas) }
                _ = try injector.call(.close(number))
            }
            if record.rebases, injector.startTicks == record.startTicks {
                for number in Foreign.unmappedMemoryFiles(of: record.pid) { _ = try injector.call(.close(number)) }
            }
        } catch {
            if case .processGone = error {} else { throw error }
        }
        try InjectionJournal.remove(journal)
    }

    /// Ends what was registered and takes all protection off the pages; memory that is gone, or was never registered, has
    /// none.
    static func unregister(_ faults: Descriptor, _ areas: [WriteTracker.Area]) {
        for area in areas { _ = capus_fault_unregister(faults.number, area.address, area.byteCount) }
    }
}

/// A switch of the kernel's under `/proc/sys`.
struct Sysctl {
    private let path: String
    static let unprivilegedFaults = Sysctl(path: "/proc/sys/vm/unprivileged_userfaultfd")

    /// nil: this kernel has no such switch.
    var isOn: Bool? { (try? ProcFile.read(path)).map { $0.hasPrefix("1") } }

    /// What cannot be written stays as it is; the call that needed it then fails for its own reason.
    func write(_ on: Bool) {
        guard let file = try? Descriptor.open(path, .readWrite) else { return }
        var digit = UInt8(ascii: on ? "1" : "0")
        // SAFETY: one byte of a variable that outlives the call.
        _ = unsafe Glibc.write(file.number, &digit, 1)
    }
}
