internal import CApus
internal import Glibc

/// Threads of another process in a ptrace stop; they go on where they were when this value goes.
///
/// The tracer is the calling thread: all use of one value is on one thread, see ``Injector/onTracer(_:)``.
@safe struct StoppedThreads: ~Copyable {
    /// What a stop, or a call, may take.
    static let msMax = 1000

    private let pid: Int32
    private var threads: [capus_thread]
    /// Index of the one that calls for us.
    private var borrowed: Int?

    var count: Int { threads.count }

    private init(pid: Int32, threads: [capus_thread]) {
        self.pid = pid
        self.threads = threads
    }

    deinit {
        // A thread that is not stopped cannot be let go now; the kernel does it at the end of this thread.
        let deadline = Instant.now().adding(ms: Double(Self.msMax))
        for thread in threads {
            unsafe withUnsafePointer(to: thread) { _ = unsafe capus_thread_release($0, deadline.ns) }
        }
    }

    /// Stops the threads with these ids, all at the same time. One that ends meanwhile is no longer among them.
    ///
    /// - Parameter pastSeccomp: calls made through them are not filtered, as far as the kernel allows.
    static func stop(_ ids: [Int32], of pid: Int32, pastSeccomp: Bool) throws(InjectionError) -> StoppedThreads {
        var stopped = StoppedThreads(pid: pid, threads: [])
        try stopped.add(ids, pastSeccomp: pastSeccomp)
        return stopped
    }

    /// Stops every thread of a process that can run its code.
    static func stopAll(of pid: Int32, pastSeccomp: Bool) throws(InjectionError) -> StoppedThreads {
        var stopped = StoppedThreads(pid: pid, threads: [])
        // A thread that is not stopped yet may start another one.
        for _ in 0..<passesMax {
            let known = stopped.threads.map(\.id)
            let new = try userThreads(of: pid).filter { !known.contains($0) }
            if new.isEmpty { return stopped }
            try stopped.add(new, pastSeccomp: pastSeccomp)
        }
        throw .noStop(pid: pid, ms: msMax)
    }
    private static let passesMax = 16

    /// Without the threads that only the kernel runs in, for io_uring, vhost and KVM: they obey no tracer.
    static func userThreads(of pid: Int32) throws(InjectionError) -> [Int32] {
        do throws(SystemError) {
            return try ProcFile.numbers(in: "/proc/\(pid)/task").filter { id in
                guard let stat = try? ProcFile.read("/proc/\(pid)/task/\(id)/stat") else { return false }
                return !ProcFile.isKernelThread(stat: stat)
            }
        } catch {
            throw .processGone(pid: pid)
        }
    }

    private mutating func add(_ ids: [Int32], pastSeccomp: Bool) throws(InjectionError) {
        let first = threads.count
        for id in ids {
            var thread = capus_thread()
            thread.id = id
            // SAFETY: the structure outlives the call, here and below.
            let error = unsafe capus_thread_seize(&thread, pastSeccomp ? 1 : 0)
            if error == ESRCH { continue }
            guard error == 0 else { throw InjectionError.tracing(pid: pid, thread: id, error) }
            threads.append(thread)
        }
        let deadline = Instant.now().adding(ms: Double(Self.msMax))
        var index = first
        while index < threads.count {
            let error = unsafe capus_thread_stop(&threads[index], deadline.ns)
            if error == ESRCH {
                threads.remove(at: index)
                continue
            }
            guard error == 0 else { throw InjectionError.tracing(pid: pid, thread: threads[index].id, error) }
            index += 1
        }
    }

    /// Makes one of the threads ready to call; false when none of them sleeps in a futex: then they must be left alone.
    mutating func borrow(_ gadgets: capus_gadgets) throws(InjectionError) -> Bool {
        var gadgets = gadgets
        for index in threads.indices {
            let error = unsafe capus_thread_borrow(&threads[index], &gadgets)
            if error == EBUSY { continue }
            guard error == 0 else { throw InjectionError.tracing(pid: pid, thread: threads[index].id, error) }
            borrowed = index
            return true
        }
        return false
    }

    /// One system call, made by the borrowed thread.
    ///
    /// - Returns: what the call gave.
    /// - Throws: `InjectionError`; `.refused` with the call's own errno.
    mutating func call(_ request: InjectedCall, _ gadgets: capus_gadgets) throws(InjectionError) -> Int64 {
        guard let index = borrowed else { preconditionFailure("no thread is borrowed") }
        var gadgets = gadgets
        var call = request.raw(name: threads[index].name)
        let deadline = Instant.now().adding(ms: Double(Self.msMax))
        let error = unsafe capus_thread_call(&threads[index], &gadgets, &call, deadline.ns)
        guard error == 0 else { throw InjectionError.tracing(pid: pid, thread: threads[index].id, error) }
        guard call.result >= 0 else {
            throw .refused(pid: pid, SystemError(request.name, code: Int32(-call.result)))
        }
        return call.result
    }
}

/// A system call to be made by another process.
struct InjectedCall: Sendable {
    let name: String
    let number: Int
    let arguments: [UInt64]
    var takesName = false

    static func userfaultfd() -> InjectedCall {
        InjectedCall(name: "userfaultfd", number: capus_fault_number(), arguments: [capus_fault_flags()])
    }
    static func close(_ descriptor: Int32) -> InjectedCall {
        InjectedCall(name: "close", number: Int(CAPUS_CALL_CLOSE), arguments: [UInt64(descriptor)])
    }

    /// A memory file; its name, which every memory file must have, is the first argument.
    static func memoryFile() -> InjectedCall {
        InjectedCall(
            name: "memfd_create", number: Int(CAPUS_CALL_MEMFD_CREATE), arguments: [UInt64(CAPUS_MEMFD_CLOEXEC)],
            takesName: true)
    }
    /// In the place of what is there.
    static func map(_ file: Int32, from offset: UInt64, at area: WriteTracker.Area) -> InjectedCall {
        InjectedCall(
            name: "mmap", number: Int(CAPUS_CALL_MMAP),
            arguments: [
                area.address, area.byteCount, UInt64(PROT_READ | PROT_WRITE), UInt64(MAP_SHARED | MAP_FIXED),
                UInt64(file), offset,
            ])
    }
    static func advise(_ area: WriteTracker.Area, _ advice: Int32) -> InjectedCall {
        InjectedCall(
            name: "madvise", number: Int(CAPUS_CALL_MADVISE),
            arguments: [area.address, area.byteCount, UInt64(advice)])
    }

    fileprivate func raw(name: UInt64) -> capus_call {
        let all = (takesName ? [name] : []) + arguments
        precondition(all.count <= 6)
        func argument(_ index: Int) -> UInt64 { index < all.count ? all[index] : 0 }
        return capus_call(
            number: Int64(number),
            arguments: (argument(0), argument(1), argument(2), argument(3), argument(4), argument(5)), result: 0)
    }
}

extension InjectionError {
    /// What an errno of ptrace(2) means.
    static func tracing(pid: Int32, thread: Int32, _ error: Int32) -> InjectionError {
        switch error {
        case ESRCH: return .processGone(pid: pid)
        case ETIMEDOUT: return .noStop(pid: pid, ms: StoppedThreads.msMax)
        case EPERM:
            // The tracer is a thread; people know its process.
            if let tracer = number("TracerPid", in: "/proc/\(pid)/task/\(thread)/status"), tracer != 0 {
                return .alreadyTraced(pid: pid, by: number("Tgid", in: "/proc/\(tracer)/status") ?? tracer)
            }
            return .traceForbidden(pid: pid, SystemError("ptrace", code: error))
        case ENOSYS: return .kernelLacks("way into a process on this processor")
        default: return .refused(pid: pid, SystemError("ptrace", code: error))
        }
    }

    private static func number(_ field: String, in path: String) -> Int32? {
        (try? ProcFile.read(path)).flatMap { ProcFile.field(field, of: $0) }.flatMap { Int32($0) }
    }
}
