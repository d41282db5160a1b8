/// Why nothing could be done inside another process. It goes on as it was.
public enum InjectionError: Error, Equatable, Sendable {
    case processGone(pid: Int32)
    /// A debugger, or another agent, has the thread.
    case alreadyTraced(pid: Int32, by: Int32)
    case traceForbidden(pid: Int32, SystemError)
    /// No thread but vCPUs, or none that stayed asleep for `ms`.
    case noSleepingThread(pid: Int32, ms: Int)
    /// A thread did not stop, or its system call did not return, within `ms`.
    case noStop(pid: Int32, ms: Int)
    /// The program holds no `syscall; ret`, or no return from a signal handler: it has no C library.
    case noEntry(pid: Int32)
    /// A system call made inside the process, or about it.
    case refused(pid: Int32, SystemError)
    case kernelLacks(String)
    /// Another userfaultfd has the memory: another agent, or QEMU itself.
    case memoryTaken(pid: Int32)
    case journalExists(path: String)
    case journalUnreadable(path: String)
    case journalFailed(SystemError)
    /// This memory cannot be given another file; the text says why.
    case unsuited(String)
}

extension InjectionError: CustomStringConvertible {
    public var description: String {
        switch self {
        case .processGone(let pid): "Process \(pid) has ended"
        case .alreadyTraced(let pid, let by):
            "Process \(pid) is being traced by process \(by); end that debugger, then try again"
        case .traceForbidden(let pid, let error):
            "ptrace of process \(pid) is not allowed (\(error.reason)); run the agent as root with CAP_SYS_PTRACE, and "
                + "set kernel.yama.ptrace_scope below 3"
        case .noSleepingThread(let pid, let ms):
            "Process \(pid) had no sleeping thread to borrow for \(ms) ms; try again when it is less busy"
        case .noStop(let pid, let ms):
            "A thread of process \(pid) did not stop within \(ms) ms; try again when the host is less busy"
        case .noEntry(let pid): "Process \(pid) has no C library that could be called from outside"
        case .refused(let pid, let error):
            "The kernel refused \(error.call) for process \(pid): \(error.reason); "
                + "a security module or a seccomp filter may forbid it"
        case .kernelLacks(let what): "This kernel has no \(what); Linux 6.7 or later is needed"
        case .memoryTaken(let pid):
            "The memory of process \(pid) is already under a userfaultfd, of another agent or of QEMU itself "
                + "(post-copy, background snapshot); wait for its end"
        case .journalExists(let path):
            "\(path) tells of an earlier attachment; it must be taken out first (an agent does so when it starts)"
        case .journalUnreadable(let path): "\(path) is no journal of an attachment; remove it by hand"
        case .journalFailed(let error): "The journal of the attachment could not be kept: \(error)"
        case .unsuited(let why): why
        }
    }
}
