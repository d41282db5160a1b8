internal import CApus
internal import Glibc
internal import Synchronization

/// A process for ever: pids are used again, (pid, start time) is not within one boot.
public struct ProcessIdentity: Sendable, Hashable, Codable {
    public let pid: Int32
    /// Field 22 of `/proc/PID/stat`: clock ticks since boot.
    public let startTicks: UInt64

    public init(pid: Int32, startTicks: UInt64) {
        self.pid = pid
        self.startTicks = startTicks
    }
}

/// How a process ended.
public enum ProcessExit: Sendable, Equatable {
    case code(Int32)
    case signal(Int32)
    /// It was not our child; its parent got the status.
    case unknown
}

/// What to start, and with what around it.
public struct SpawnRequest: Sendable {
    /// Absolute path of the binary; no search.
    public var executable: String
    /// Without the program name, which is `executable`.
    public var arguments: [String]
    /// nil: as the caller.
    public var workingDirectory: String?
    /// stdout and stderr are appended here; made with mode 0600.
    public var logPath: String
    /// The child's descriptors 3, 4, …; it inherits no other.
    public var descriptors: [Int32]

    public init(
        executable: String, arguments: [String], workingDirectory: String? = nil, logPath: String,
        descriptors: [Int32] = []
    ) {
        self.executable = executable
        self.arguments = arguments
        self.workingDirectory = workingDirectory
        self.logPath = logPath
        self.descriptors = descriptors
    }
}

/// A running (or ended) process, held by a pidfd: signals can never reach another one.
public final class ProcessHandle: Sendable {
    public let identity: ProcessIdentity
    public var pid: Int32 { identity.pid }
    private let pidfd: Int32
    /// The exit once seen, and who waits for it.
    private let state = Mutex<(exit: ProcessExit?, waiters: [@Sendable (ProcessExit) -> Void])>((nil, []))

    private init(pidfd: Int32, pid: Int32) throws(SystemError) {
        self.pidfd = pidfd
        do throws(SystemError) {
            identity = ProcessIdentity(pid: pid, startTicks: try Self.startTicks(of: pid))
        } catch {
            // A throwing initializer runs no `deinit` before every field is set.
            close(pidfd)
            throw error
        }
        // Alive after the reading: so it was this process that was read.
        let error = capus_pidfd_signal(pidfd, 0)
        guard error == 0 || error == EPERM else { throw SystemError("pidfd_send_signal", code: error) }
    }

    deinit { close(pidfd) }

    /// Starts a process in its own session; it outlives this one.
    ///
    /// - Throws: `SystemError` with the errno of `exec` or of what was prepared for it.
    public static func spawn(_ request: SpawnRequest) throws(SystemError) -> ProcessHandle {
        var pid: Int32 = 0
        let words = [request.executable] + request.arguments
        // SAFETY: the copies live until freed below; argv ends with NULL; the C side keeps none of them.
        var argv = unsafe words.map { unsafe strdup($0) }
        defer { unsafe argv.forEach { unsafe free($0) } }
        unsafe argv.append(nil)
        let error: Int32
        if let directory = request.workingDirectory {
            error = unsafe capus_spawn(
                request.executable, argv, directory, request.logPath, request.descriptors,
                request.descriptors.count, &pid)
        } else {
            error = unsafe capus_spawn(
                request.executable, argv, nil, request.logPath, request.descriptors, request.descriptors.count, &pid)
        }
        guard error == 0 else { throw SystemError("spawn \(request.executable)", code: error) }
        // Not reaped by anybody but us, so the pid still means our child, dead or alive.
        let pidfd = capus_pidfd_open(pid)
        guard pidfd >= 0 else { throw SystemError("pidfd_open", code: -pidfd) }
        let handle = try ProcessHandle(pidfd: pidfd, pid: pid)
        try ProcessWatcher.shared.watch(handle, pidfd: pidfd)
        return handle
    }

    /// Takes hold of a process that is already there, child or not.
    ///
    /// - Throws: `SystemError`, `ESRCH` when there is none.
    public static func open(pid: Int32) throws(SystemError) -> ProcessHandle {
        let pidfd = capus_pidfd_open(pid)
        guard pidfd >= 0 else { throw SystemError("pidfd_open", code: -pidfd) }
        let handle = try ProcessHandle(pidfd: pidfd, pid: pid)
        // Ended, and its parent has not asked yet: for us it is gone.
        guard try !ProcFile.isZombie(stat: ProcFile.read("/proc/\(pid)/stat")) else {
            throw SystemError("pidfd_open", code: ESRCH)
        }
        try ProcessWatcher.shared.watch(handle, pidfd: pidfd)
        return handle
    }

    /// The same process as before, for example before this program was restarted.
    ///
    /// - Throws: `SystemError`, `ESRCH` when it is gone, whoever has its pid now.
    public static func open(_ identity: ProcessIdentity) throws(SystemError) -> ProcessHandle {
        let handle = try open(pid: identity.pid)
        guard handle.identity == identity else { throw SystemError("pidfd_open", code: ESRCH) }
        return handle
    }

    /// Sends a signal to exactly this process.
    ///
    /// - Throws: `SystemError`, `ESRCH` when it has ended.
    public func signal(_ number: Int32) throws(SystemError) {
        let error = capus_pidfd_signal(pidfd, number)
        guard error == 0 else { throw SystemError("pidfd_send_signal", code: error) }
    }

    /// nil while it runs.
    public var exit: ProcessExit? { state.withLock { $0.exit } }

    /// Calls `body` once, when the process has ended (at once if it already has), on the watcher's thread or the
    /// caller's; `body` must not block.
    public func onExit(_ body: @escaping @Sendable (ProcessExit) -> Void) {
        let exit: ProcessExit? = state.withLock { state in
            if state.exit == nil { state.waiters.append(body) }
            return state.exit
        }
        if let exit { body(exit) }
    }

    /// Called by the watcher when the pidfd is readable: the process has ended.
    fileprivate func ended() {
        var signalled: Int32 = 0
        var status: Int32 = 0
        // SAFETY: both variables outlive the call.
        let reaped = unsafe capus_pidfd_reap(pidfd, &signalled, &status)
        let exit: ProcessExit = reaped != 1 ? .unknown : signalled != 0 ? .signal(status) : .code(status)
        let waiters = state.withLock { state in
            defer { state.waiters = [] }
            state.exit = exit
            return state.waiters
        }
        for waiter in waiters { waiter(exit) }
    }

    private static func startTicks(of pid: Int32) throws(SystemError) -> UInt64 {
        let text = try ProcFile.read("/proc/\(pid)/stat")
        guard let ticks = ProcFile.startTicks(stat: text) else {
            throw SystemError("stat \(pid)", code: EINVAL)
        }
        return ticks
    }
}

/// One thread that waits for the end of every process held here.
final class ProcessWatcher: Sendable {
    static let shared = ProcessWatcher()

    /// -errno when the kernel gave none; then every `watch` fails.
    private let epoll: Int32
    private let watched = Mutex<(next: UInt64, handles: [UInt64: (handle: ProcessHandle, pidfd: Int32)])>((0, [:]))

    private init() {
        epoll = capus_epoll_create()
        guard epoll >= 0 else { return }
        var thread = pthread_t()
        // SAFETY: the watcher is a static that is never freed, so the unretained pointer stays valid.
        let me = unsafe Unmanaged.passUnretained(self).toOpaque()
        _ = unsafe pthread_create(
            &thread, nil,
            { argument in
                if let argument = unsafe argument {
                    unsafe Unmanaged<ProcessWatcher>.fromOpaque(argument).takeUnretainedValue().run()
                }
                return nil
            }, me)
        _ = pthread_detach(thread)
    }

    func watch(_ handle: ProcessHandle, pidfd: Int32) throws(SystemError) {
        guard epoll >= 0 else { throw SystemError("epoll_create", code: -epoll) }
        // The handle is kept until its process ends, so the pidfd stays open while epoll knows it.
        let key = watched.withLock { watched in
            watched.next += 1
            watched.handles[watched.next] = (handle, pidfd)
            return watched.next
        }
        let error = capus_epoll_add(epoll, pidfd, key)
        guard error == 0 else {
            watched.withLock { _ = $0.handles.removeValue(forKey: key) }
            throw SystemError("epoll_ctl", code: error)
        }
    }

    private func run() {
        while true {
            var key: UInt64 = 0
            // SAFETY: the variable outlives the call.
            guard unsafe capus_epoll_next(epoll, &key) == 0 else { return }
            guard let (handle, pidfd) = watched.withLock({ $0.handles.removeValue(forKey: key) }) else { continue }
            capus_epoll_remove(epoll, pidfd)
            handle.ended()
        }
    }
}
