import ApusAPI
import ApusContent
import ApusMemory
import ApusQMP
import ApusSystem
import Foundation
import Logging

/// What this agent can find elsewhere: blocks of its VMs' disks, by an index that it makes in the background, and memory
/// images of VMs that have left it.
///
/// ```
///   VM is here -- its images --> due --> indexer (idle priority) --> index in memory, sidecar on disk
///      ^                          |                                     |
///      `---- every 10 minutes ----'                                     `--> outgoing jobs look pages up in it
/// ```
final class ContentDesk: Sendable {
    /// One disk image.
    struct Image: Sendable {
        var index: BlockIndex?
        /// For people: `waiting`, `indexed`, or why not.
        var state = "waiting"
        var lookedAt: Instant?
        var usedAt = Instant.now()
    }
    private struct State: Sendable {
        var images: [String: Image] = [:]
        var due: [String] = []
        var isRunning = false
    }

    let config: AgentConfig.Content
    let store: ImageStore?
    private let folder: String
    private let logger: Logger
    private let state = Monitor(State())
    private let secret: Result<[UInt8], Problem>

    /// How often an image is looked at again, and VMs for new ones.
    private static let refreshMs = 600_000.0
    private static let watchMs: Duration = .seconds(1)

    init(_ config: AgentConfig, _ logger: Logger) {
        self.config = config.content
        self.logger = logger
        folder = config.stateDirectory + "/content"
        secret = Self.secret(config.content, folder)
        store =
            config.content.storeMiB > 0
            ? ImageStore(
                path: folder + "/store", bytesMax: UInt64(config.content.storeMiB) << 20,
                keepMs: config.content.keepS * 1000, logger) : nil
    }

    // MARK: Keys

    /// A key file that agents share, else one of this agent's own, made at its first start.
    private static func secret(_ config: AgentConfig.Content, _ folder: String) -> Result<[UInt8], Problem> {
        guard config.disks || config.storeMiB > 0 else {
            return .failure(Problem("content-off", "References are switched off on this host."))
        }
        do {
            let path = config.keyFile ?? folder + "/key"
            if config.keyFile == nil, !FileManager.default.fileExists(atPath: path) {
                try FileManager.default.createDirectory(
                    atPath: folder, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
                var random = SystemRandomNumberGenerator()
                let bytes = (0..<ContentKey.secretBytes).map { _ in UInt8.random(in: 0...255, using: &random) }
                let temporary = path + ".new"
                guard
                    FileManager.default.createFile(
                        atPath: temporary, contents: Data(bytes), attributes: [.posixPermissions: 0o600])
                else { throw CocoaError(.fileWriteUnknown) }
                try FileManager.default.moveItem(atPath: temporary, toPath: path)
            }
            let bytes = try Data(contentsOf: URL(fileURLWithPath: path))
            guard bytes.count >= 16 else {
                throw Problem("content-key", "The key file \(path) has \(bytes.count) bytes; it needs 16 at least.")
            }
            return .success(digest(Array(bytes)))
        } catch let problem as Problem {
            return .failure(problem)
        } catch {
            return .failure(
                Problem("content-key", "The content key cannot be read: \(error.localizedDescription)."))
        }
    }

    /// The secret of one trust domain, which tells nothing of the others'. It is what an agent says to its peer.
    func domainSecret(ofVM vm: String) throws(Problem) -> [UInt8] {
        Self.digest(try secret.get() + Array("domain \(config.domains[vm] ?? "default")".utf8))
    }

    func key(ofVM vm: String) throws(Problem) -> ContentKey { Self.key(try domainSecret(ofVM: vm)) }
    static func key(_ secret: [UInt8]) -> ContentKey { ContentKey(secret: secret, domain: "") }

    /// Hints of disk blocks never leave this agent.
    func indexKey() throws(Problem) -> ContentKey { ContentKey(secret: try secret.get(), domain: "disks") }

    private static func digest(_ bytes: [UInt8]) -> [UInt8] {
        var buffer = PageBuffer(byteCount: Digest.byteCount)
        Digest.of(bytes.rawBytes).write(to: &buffer, at: 0)
        return buffer.bytes.bytesCopied
    }

    // MARK: Disks

    /// Indexes the disks of all VMs that are here, until the task is cancelled.
    func watch(_ machines: Machines) async {
        guard config.disks else { return }
        do { _ = try secret.get() } catch {
            return logger.warning("no references: \(error)")
        }
        var asked: [Int32: Instant] = [:]
        while !Task.isCancelled {
            let residents = await machines.records().filter { $0.phase == .resident }
            for record in residents {
                let pid = record.process.pid
                guard asked[pid].map({ Instant.now().ms(since: $0) > Self.refreshMs }) ?? true,
                    let machine = await machines.machine(record.name)
                else { continue }
                asked[pid] = Instant.now()
                for image in await machine.diskImages()?.paths ?? [] { look(at: image) }
            }
            asked = asked.filter { pid, _ in residents.contains { $0.process.pid == pid } }
            try? await Task.sleep(for: Self.watchMs)
        }
        state.update { $0.due = [] }
    }

    /// Puts an image into the indexer's queue, unless it was looked at lately.
    private func look(at path: String) {
        let starts = state.update { state in
            let image = state.images[path, default: Image()]
            state.images[path] = image
            if state.due.contains(path) { return false }
            if let lookedAt = image.lookedAt, Instant.now().ms(since: lookedAt) < Self.refreshMs { return false }
            state.due.append(path)
            defer { state.isRunning = true }
            return !state.isRunning
        }
        guard starts else { return }
        let started = try? WorkerThread("apus-index", nice: WorkerThread.idle) { [self] in
            WorkerThread.giveWayOnDisk()
            while let path = next() { index(path) }
        }
        if started == nil { state.update { $0.isRunning = false } }
    }

    private func next() -> String? {
        state.update { state in
            state.isRunning = !state.due.isEmpty
            return state.due.isEmpty ? nil : state.due.removeFirst()
        }
    }

    private func index(_ path: String) {
        do {
            let key = try indexKey()
            let indexFolder = folder + "/index"
            for each in [folder, indexFolder] { try Folder.make(each) }
            let name = String(Checksum.of(Array(path.utf8).rawBytes), radix: 16)
            let order = IndexOrder(
                image: path, sidecar: "\(indexFolder)/\(name).index", key: key, tableBytesMax: config.indexMiB << 20,
                bytesPerS: config.indexMBps * 1e6)
            guard let (index, origin) = try BlockIndex.open(order) else { return }
            var text = "indexed"
            if index.stride > 1 { text += ", one MiB of \(index.stride)" }
            if index.unreadableExtents > 0 { text += ", \(index.unreadableExtents) MiB cannot be read" }
            if case .built(let fault) = origin, fault != .missing { text += ", anew: \(fault)" }
            logger.info(
                "disk indexed", metadata: ["image": "\(path)", "blocks": "\(index.blocks)", "how": "\(origin)"])
            set(path, index, text)
        } catch {
            logger.warning("disk not indexed", metadata: ["image": "\(path)", "why": "\(error)"])
            set(path, nil, "\(error)")
        }
    }

    /// Keeps a new index; over the cap, those used longest ago go.
    private func set(_ path: String, _ index: BlockIndex?, _ text: String) {
        state.update { state in
            state.images[path] = Image(index: index, state: text, lookedAt: Instant.now())
            func bytes() -> Int { state.images.values.reduce(0) { $0 + ($1.index?.tableBytes ?? 0) } }
            while bytes() > config.indexMiB << 20,
                let oldest = state.images.filter({ $0.value.index != nil && $0.key != path })
                    .min(by: { $0.value.usedAt < $1.value.usedAt })?.key
            {
                state.images[oldest]?.index = nil
                state.images[oldest]?.state = "there is no memory for its index: raise content.indexMiB"
            }
        }
    }

    /// The index of an image, or why there is none.
    func index(of path: String) -> Result<BlockIndex, IndexAbsence> {
        let image = state.update { state in
            state.images[path]?.usedAt = Instant.now()
            return state.images[path]
        }
        guard let index = image?.index else {
            look(at: path)
            let why = image?.state ?? "waiting"
            return .failure(IndexAbsence(why: why == "waiting" ? "it is not indexed yet" : why))
        }
        return .success(index)
    }
    struct IndexAbsence: Error { let why: String }

    var images: [String: Image] { state.read { $0.images } }
}

extension Machine {
    /// Nil when QEMU does not tell.
    func diskImages() async -> DiskImages? {
        guard let nodes = try? await qmp.execute(.queryNamedBlockNodes) else { return nil }
        let directory = try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/\(pid)/cwd")
        // QEMU puts both into the guest's memory at whole pages.
        let loaded = (try? QemuCommandLine(definition.command))?.values(of: "kernel", "initrd") ?? []
        return DiskImages(nodes, loaded: loaded, workingDirectory: directory ?? "/")
    }
}
