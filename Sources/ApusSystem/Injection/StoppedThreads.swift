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
    private var isBorrowed = false

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

    /// Stops the threads with these ids, all at the same time.
    ///
    /// - Parameter pastSeccomp: calls made through them are not filtered, as far as the kernel allows.
    static func stop(_ ids: [Int32], of pid: Int32, pastSeccomp: Bool) throws(InjectionError) -> StoppedThreads {
        var stopped = StoppedThreads(pid: pid, threads: [])
        try stopped.add(ids, pastSeccomp: pastSeccomp)
        return stopped
    }

    private mutating func add(_ ids: [Int32], pastSeccomp: Bool) throws(InjectionError) {
        let first = threads.count
        for id in ids {
            var thread = capus_thread()
            thread.id = id
            // SAFETY: the structure outlives the call, here and below.
            let error = unsafe capus_thread_seize(&thread, pastSeccomp ? 1 : 0)
            // A thread may end at any time.
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

    /// Makes the first thread ready to call; false when it does not sleep in a futex, so that it must be left alone.
    mutating func borrow(_ gadgets: capus_gadgets) throws(InjectionError) -> Bool {
        guard !threads.isEmpty else { return false }
        var gadgets = gadgets
        let error = unsafe capus_thread_borrow(&threads[0], &gadgets)
        if error == EBUSY { return false }
        guard error == 0 else { throw InjectionError.tracing(pid: pid, thread: threads[0].id, error) }
        isBorrowed = true
        return true
    }

    /// One system call, made by the first thread, which has been borrowed.
    ///
    /// - Returns: what the call gave, `-errno` included.
    mutating func call(_ request: InjectedCall, _ gadgets: capus_gadgets) throws(InjectionError) -> Int64 {
        precondition(isBorrowed)
        var gadgets = gadgets
        var call = request.raw
        let deadline = Instant.now().adding(ms: Double(Self.msMax))
        let error = unsafe capus_thread_call(&threads[0], &gadgets, &call, deadline.ns)
        guard error == 0 else { throw InjectionError.tracing(pid: pid, thread: threads[0].id, error) }
        return call.result
    }
}

/// A system call to be made by another process.
struct InjectedCall: Sendable {
    let name: String
    let number: Int
    let arguments: [UInt64]

    static func userfaultfd() -> InjectedCall {
        InjectedCall(name: "userfaultfd", number: capus_fault_number(), arguments: [capus_fault_flags()])
    }
    static func close(_ descriptor: Int32) -> InjectedCall {
        InjectedCall(name: "close", number: Int(CAPUS_CALL_CLOSE), arguments: [UInt64(descriptor)])
    }

    fileprivate var raw: capus_call {
        precondition(arguments.count <= 6)
        func argument(_ index: Int) -> UInt64 { index < arguments.count ? arguments[index] : 0 }
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
