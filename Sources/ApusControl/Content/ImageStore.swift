import ApusContent
import ApusFlow
import ApusMemory
import ApusSystem
import Foundation
import Logging
import Synchronization

/// The store of memory images: one thread writes, whoever receives a VM reads. The lock is held for a batch of pages at most.
///
/// ```
///   VM has left -- keep --> queued (its RAM stays) --> writing --> complete; its RAM goes
///                              `-- too many, no room, disk error, time over: given up, said in the log and in `apus store show`
/// ```
final class ImageStore: Sendable {
    let path: String
    let bytesMax: UInt64
    /// For so long the RAM of a VM that has left may stay; half of that time its writing gives way to whoever wants the CPU.
    private let keepMs: Double
    private let logger: Logger
    private let store = Mutex<SnapshotStore?>(nil)
    private let state = Monitor(State())

    private struct Job: Sendable {
        let vm: String
        let key: ContentKey
        let image: MemoryImage
        let since = Instant.now()
    }
    private struct State: Sendable {
        /// The first is being written.
        var jobs: [Job] = []
        var isRunning = false
        var problem: String?
    }

    /// The RAM of so many VMs may wait: more would fill the host.
    private static let jobsMax = 4
    /// Memory shrinks to a third at best, as a rule: what cannot fit must not push others out.
    private static let shrinkMax: UInt64 = 3

    init(path: String, bytesMax: UInt64, keepMs: Double = AgentConfig.Content().keepS * 1000, _ logger: Logger) {
        self.path = path
        self.bytesMax = bytesMax
        self.keepMs = keepMs
        self.logger = logger
    }

    /// Runs with the open store; opens it at the first call.
    private func open<R: Sendable>(_ body: (inout SnapshotStore) throws(StoreError) -> R) throws(StoreError) -> R {
        try store.withLock { (store) throws(StoreError) -> R in
            if store == nil {
                try Self.makeParent(path)
                store = try SnapshotStore.open(path: path, bytesMax: bytesMax)
            }
            return try Self.run(&store, body)
        }
    }

    private static func run<R: Sendable>(
        _ store: inout SnapshotStore?, _ body: (inout SnapshotStore) throws(StoreError) -> R
    ) throws(StoreError) -> R {
        guard var open = store.take() else { preconditionFailure("it was opened") }
        do throws(StoreError) {
            let result = try body(&open)
            store = consume open
            return result
        } catch {
            store = consume open
            throw error
        }
    }

    private static func makeParent(_ path: String) throws(StoreError) {
        do throws(SystemError) { try Folder.make((path as NSString).deletingLastPathComponent) } catch {
            throw .disk(error)
        }
    }

    // MARK: Keeping

    /// Writes the image of a VM that has left, in the background.
    ///
    /// - Returns: why not; nil: it will be.
    func keep(_ vm: String, _ key: ContentKey, _ image: MemoryImage) -> String? {
        if let bytes = try? image.byteCount(), bytes / Self.shrinkMax > bytesMax {
            return "it has \(bytes >> 20) MiB, too much for a store of \(bytesMax >> 20) MiB (content.storeMiB)"
        }
        let (isFull, starts) = state.update { state in
            guard state.jobs.count < Self.jobsMax else { return (true, false) }
            state.jobs.append(Job(vm: vm, key: key, image: image))
            defer { state.isRunning = true }
            return (false, !state.isRunning)
        }
        if isFull { return "the images of \(Self.jobsMax) other VMs are still being written" }
        guard starts else { return nil }
        let started = try? WorkerThread("apus-keep", nice: WorkerThread.idle) { [self] in
            WorkerThread.giveWayOnDisk()
            while let job = next() {
                write(job)
                state.update { state in
                    state.jobs.removeFirst()
                    state.isRunning = !state.jobs.isEmpty
                }
            }
        }
        return started == nil ? "there is no thread for it" : nil
    }

    private func next() -> Job? { state.read { $0.jobs.first } }

    private func write(_ job: Job) {
        let began = Instant.now()
        var idle = IdlePace(until: job.since.adding(ms: keepMs / 2))
        do throws(StoreError) {
            try open { (store) throws(StoreError) in
                try store.begin(vm: job.vm, job.key, pageCount: job.image.pageCount)
            }
            try job.image.forEachRun(failed: { StoreError.disk($0) }) { (first, count, bytes) throws(StoreError) in
                guard Instant.now().ms(since: job.since) < keepMs else { throw .tooSlow(seconds: keepMs / 1000) }
                try open { (store) throws(StoreError) in
                    for index in 0..<count {
                        let at = index * Limits.pageBytes
                        try store.add(first + PageNumber(index), bytes.extracting(at..<at + Limits.pageBytes))
                    }
                }
                idle.giveWay()
            }
            try open { (store) throws(StoreError) in try store.finish() }
            state.update { $0.problem = nil }
            logger.info(
                "memory image kept",
                metadata: ["vm": "\(job.vm)", "ms": "\(Int(Instant.now().ms(since: began)))"])
        } catch {
            try? open { (store) throws(StoreError) in store.abandon() }
            state.update { $0.problem = "The memory image of \(job.vm) was not kept. \(error)" }
            logger.warning("memory image not kept", metadata: ["vm": "\(job.vm)", "why": "\(error)"])
        }
    }

    // MARK: Using

    /// The image of a VM that is here, else of one like it; nil: there is none.
    ///
    /// - Parameter ramBytes: of the VM; nil: only its own.
    /// - Throws: `StoreError`; also while it is being written.
    func snapshot(of vm: String, _ key: ContentKey, ramBytes: UInt64? = nil) throws(StoreError) -> Snapshot? {
        if state.read({ $0.jobs.contains { $0.vm == vm } }) { throw .busy }
        return try open { (store) throws(StoreError) in
            try store.snapshot(of: vm, key, orLike: ramBytes)
        }
    }

    /// Whose image that would be.
    func holder(of vm: String, _ key: ContentKey, ramBytes: UInt64) throws(StoreError) -> String? {
        if state.read({ $0.jobs.contains { $0.vm == vm } }) { throw .busy }
        return try open { (store) throws(StoreError) in try store.holder(of: vm, key, orLike: ramBytes) }
    }

    var writing: [String] { state.read { $0.jobs.map(\.vm) } }
    var problem: String? { state.read { $0.problem } }

    func contents() throws(StoreError) -> (images: [SnapshotInfo], byteCount: UInt64, repairs: [String]) {
        try open { (store) throws(StoreError) in (try store.snapshots(), store.byteCount, store.repairs) }
    }

    /// Gives back what no image needs.
    func collect() throws(StoreError) {
        try open { (store) throws(StoreError) in try store.collect() }
    }

    /// Removes the images of a VM, in all domains.
    ///
    /// - Returns: how many there were.
    func drop(_ vm: String, wipes: Bool) throws(StoreError) -> Int {
        if state.read({ $0.jobs.contains { $0.vm == vm } }) { throw .busy }
        return try open { (store) throws(StoreError) in
            let images = try store.snapshots().filter { $0.vm == vm }
            for image in images { try store.drop(image, wipes: wipes) }
            if !images.isEmpty { try store.collect(wipes: wipes) }
            return images.count
        }
    }
}
