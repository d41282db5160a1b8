internal import CApus
internal import Glibc
internal import Synchronization

/// A process whose sleeping threads make system calls for us.
///
///     agent    SEIZE, INTERRUPT ──▶ stopped ── registers: call ──▶ SYSCALL … SYSCALL ── registers: home ──▶ DETACH
///     thread   asleep in futex                                    in the call                               asleep again
///
/// One thread stops for some tens of microseconds; the others, and all vCPUs, go on.
struct Injector: Sendable {
    let pid: Int32
    /// Clock ticks since boot; with the pid, the process for ever.
    let startTicks: UInt64
    private let pidfd: Descriptor
    private let gadgets: capus_gadgets
    private let pastSeccomp: Bool

    /// How long a sleeping thread is looked for.
    static let searchMsMax = 2000
    /// Calls that a thread makes before it is let go: a few milliseconds.
    private static let callsAtOnce = 256

    static func open(pid: Int32) throws(InjectionError) -> Injector {
        let number = capus_pidfd_open(pid)
        guard number >= 0 else {
            throw number == -ESRCH || number == -EINVAL
                ? .processGone(pid: pid) : .refused(pid: pid, SystemError("pidfd_open", code: -number))
        }
        let pidfd = Descriptor(owning: number)
        guard let stat = try? ProcFile.read("/proc/\(pid)/stat"), !ProcFile.isZombie(stat: stat),
            let ticks = ProcFile.startTicks(stat: stat),
            // Alive after the reading: so it was this process that was read.
            capus_pidfd_signal(pidfd.number, 0) != ESRCH
        else { throw .processGone(pid: pid) }
        let status = (try? ProcFile.read("/proc/\(pid)/status")) ?? ""
        return Injector(
            pid: pid, startTicks: ticks, pidfd: pidfd, gadgets: try Gadgets.find(in: pid),
            pastSeccomp: ProcFile.field("Seccomp", of: status) == "2")
    }

    /// A copy of one of the process's descriptors.
    func copy(descriptor: Int32) throws(InjectionError) -> Descriptor {
        let number = capus_pidfd_getfd(pidfd.number, descriptor)
        if number == -ESRCH { throw .processGone(pid: pid) }
        guard number >= 0 else { throw .refused(pid: pid, SystemError("pidfd_getfd", code: -number)) }
        return Descriptor(owning: number)
    }

    /// Has a sleeping thread make one system call.
    ///
    /// - Returns: its result.
    /// - Throws: `InjectionError`; `.refused` with the call's own errno.
    func call(_ request: InjectedCall) throws(InjectionError) -> Int64 {
        try Self.onTracer { () throws(InjectionError) in try callHere([request]) }
    }

    /// Has sleeping threads make system calls, one after the other; the first that is refused ends it.
    func call(_ requests: [InjectedCall]) throws(InjectionError) {
        try Self.onTracer { () throws(InjectionError) in
            for start in stride(from: 0, to: requests.count, by: Self.callsAtOnce) {
                _ = try callHere(Array(requests[start..<min(start + Self.callsAtOnce, requests.count)]))
            }
        }
    }

    /// Stops all threads, runs `preparation`, then has one of the threads make the calls, and lets them all go.
    ///
    /// - Parameter preparation: what has to be done while nothing of the process runs; its error ends it all.
    /// - Throws: `InjectionError`. When the first call is refused, nothing has happened; what later ones answer counts
    ///   for nothing.
    func callWhileStopped(
        _ requests: [InjectedCall], after preparation: @escaping @Sendable () throws(InjectionError) -> Void
    ) throws(InjectionError) {
        try Self.onTracer { () throws(InjectionError) in
            var stopped = try StoppedThreads.stopAll(of: pid, pastSeccomp: pastSeccomp)
            guard try stopped.borrow(gadgets) else { throw .noSleepingThread(pid: pid, ms: 0) }
            try preparation()
            guard let first = requests.first else { return }
            _ = try stopped.call(first, gadgets)
            for request in requests.dropFirst() { _ = try? stopped.call(request, gadgets) }
        }
    }

    /// - Returns: the result of the last.
    private func callHere(_ requests: [InjectedCall]) throws(InjectionError) -> Int64 {
        let deadline = Instant.now().adding(ms: Double(Self.searchMsMax))
        repeat {
            for thread in try sleepingThreads() {
                var stopped = try StoppedThreads.stop([thread], of: pid, pastSeccomp: pastSeccomp)
                // It may have woken up meanwhile.
                guard try stopped.borrow(gadgets) else { continue }
                var result: Int64 = 0
                for request in requests { result = try stopped.call(request, gadgets) }
                return result
            }
            pause(ms: 5)
        } while Instant.now() < deadline
        throw .noSleepingThread(pid: pid, ms: Self.searchMsMax)
    }

    /// Threads that sleep in a futex, oldest first: a QEMU's RCU thread is older than any vCPU, and nobody misses it
    /// for a moment. The first thread and, where they have names, vCPUs are left out.
    private func sleepingThreads() throws(InjectionError) -> [Int32] {
        try StoppedThreads.userThreads(of: pid).filter { id in
            let task = "/proc/\(pid)/task/\(id)"
            guard id != pid, let call = try? ProcFile.read("\(task)/syscall"), call.hasPrefix("\(CAPUS_CALL_FUTEX) ")
            else { return false }
            return (try? ProcFile.read("\(task)/comm"))?.hasPrefix("CPU ") == false
        }
    }

    /// Runs `body` on a thread of its own, which is the tracer, and waits for it. Its end ends every tracing, whatever
    /// state that is in.
    static func onTracer<Result: Sendable>(
        _ body: @escaping @Sendable () throws(InjectionError) -> Result
    ) throws(InjectionError) -> Result {
        let outcome = Outcome<Result>()
        let thread: WorkerThread
        do throws(SystemError) {
            thread = try WorkerThread("apus-tracer") {
                do throws(InjectionError) {
                    let result = try body()
                    outcome.value.withLock { $0 = .success(result) }
                } catch {
                    outcome.value.withLock { $0 = .failure(error) }
                }
            }
        } catch {
            throw .refused(pid: getpid(), error)
        }
        thread.join()
        guard let value = outcome.value.withLock({ $0 }) else { preconditionFailure("the thread set it") }
        return try value.get()
    }

    private final class Outcome<Value: Sendable>: Sendable {
        let value = Mutex<Result<Value, InjectionError>?>(nil)
    }
}

/// Two pieces of code in another process; `capus_trace.h` says what for.
enum Gadgets {
    /// The C library comes first in the search; a program without one is its own only candidate. What is longer is not
    /// looked through to its end.
    static let searchBytesMax: UInt64 = 64 << 20

    static func find(in pid: Int32) throws(InjectionError) -> capus_gadgets {
        guard let maps = try? ProcFile.read("/proc/\(pid)/maps"), !maps.isEmpty else { throw .processGone(pid: pid) }
        let code = maps.split(separator: "\n").filter { $0.contains(" r-xp ") && $0.contains("/") }
        let ordered = code.filter { $0.contains("/libc") } + code.filter { !$0.contains("/libc") }
        var left = searchBytesMax
        var buffer = PageBuffer(byteCount: 1 << 20)
        for line in ordered {
            let bounds = line.prefix { $0 != " " }.split(separator: "-").compactMap { UInt64($0, radix: 16) }
            guard bounds.count == 2, bounds[0] < bounds[1] else { continue }
            let bytes = min(bounds[1] - bounds[0], left)
            left -= bytes
            let window = ProcessWindow(pid: pid, address: bounds[0], byteCount: bytes)
            if let found = search(window, &buffer) { return found }
        }
        throw .noEntry(pid: pid)
    }

    /// Both in one mapping: one program's, or one library's.
    private static func search(_ window: ProcessWindow, _ buffer: inout PageBuffer) -> capus_gadgets? {
        var found = capus_gadgets()
        var at: UInt64 = 0
        while at < window.byteCount {
            let count = Int(min(window.byteCount - at, UInt64(buffer.byteCount)))
            guard (try? window.copyOut(at: at, byteCount: count, to: &buffer, bufferOffset: 0)) != nil else {
                return nil
            }
            let bytes = buffer.bytes
            // Pieces that lie across two blocks are not seen; there are many of each.
            for index in 0..<max(0, count - 8) {
                let word = bytes.littleEndian(at: index, as: UInt64.self)
                if word & 0xff_ffff == 0xc3_050f { found.call = window.address + at + UInt64(index) }
                //                       mov $15, %rax = 48 c7 c0 0f 00 00 00, syscall = 0f 05
                if word == 0x0f00_0000_0fc0_c748, bytes.byte(at: index + 8) == 0x05 {
                    found.leave = window.address + at + UInt64(index)
                }
            }
            if found.call != 0, found.leave != 0 { return found }
            at += UInt64(count)
        }
        return nil
    }
}
