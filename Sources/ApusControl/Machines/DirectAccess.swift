import ApusFlow
import ApusMemory
import ApusQMP
import ApusSystem
import Foundation

/// What an agent must know to own a VM's RAM from outside (the direct port).
struct DirectAccess: Sendable, Equatable {
    /// One RAM block that is in a file.
    struct Block: Sendable, Equatable, Codable {
        var name: String
        var byteCount: UInt64
        /// In QEMU's address space.
        var address: UInt64
        /// Under `/proc/PID/fd`.
        var path: String
        var fileOffset: UInt64
        /// QEMU takes it for private memory, and does not leave it out of its stream with `x-ignore-shared`.
        var isSentByQemu: Bool
        /// Given its file while the VM ran; see ``MemoryRebase``.
        var isRebased: Bool
    }
    var blocks: [Block]
    /// A disk with cache.direct=on (O_DIRECT) reads into pinned memory, behind the page tables.
    var usesDirectIO: Bool

    init(blocks: [Block], usesDirectIO: Bool) {
        self.blocks = blocks
        self.usesDirectIO = usesDirectIO
    }

    /// Why a VM goes by the stream port.
    struct Obstacle: Error, Sendable, Equatable, CustomStringConvertible {
        var description: String
        init(_ description: String) { self.description = description }
    }

    /// Devices whose memory accesses QEMU's page tables do not show, or whose memory is not the guest's alone.
    private static let foreignDevices = [
        "vhost-user", "vfio", "ivshmem", "virtio-mem", "virtio-pmem", "nvdimm", "vdpa",
    ]
    /// From this version on QEMU leaves out only RAM in a named file, and sends a memfd.
    private static let namedFilesOnly = QEMUVersion(major: 8, minor: 1, micro: 0)

    /// A running VM that has nothing against the direct port, except perhaps where its RAM is.
    struct Candidate: Sendable {
        let pid: Int32
        let infos: [RAMBlockInfo]
        let usesDirectIO: Bool
        let namedFilesOnly: Bool
    }

    /// Looks at a running VM, without touching it.
    static func examine(_ machine: Machine) async throws(Obstacle) -> Candidate {
        if let lack = WriteTracker.hostLacks() { throw Obstacle(lack) }
        do {
            let known = try await machine.qmp.execute(.queryMigrateCapabilities)
            guard known.states["x-ignore-shared"] != nil else {
                throw Obstacle("Its QEMU has no x-ignore-shared.")
            }
            let tree = try await machine.qmp.execute(.human("info qtree"))
            let network = try await machine.qmp.execute(.human("info network"))
            if let writer = foreignWriter(devices: tree, network: network) {
                throw Obstacle("It has \(writer), whose writes to memory the agent would not see.")
            }
            let disks = try await machine.qmp.execute(.queryBlock)
            if let disk = disks.first(where: { $0.inserted?.writesFromOutside ?? false }) {
                throw Obstacle("Its disk \(disk.device) writes to memory past QEMU.")
            }
            let usesDirectIO = disks.contains { $0.inserted?.cache?.direct ?? false }
            let version = try await machine.qmp.execute(.queryVersion)
            let infos = RAMBlockInfo.parse(try await machine.qmp.execute(.human("info ramblock")))
            return Candidate(
                pid: machine.pid, infos: infos, usesDirectIO: usesDirectIO, namedFilesOnly: version >= namedFilesOnly)
        } catch let obstacle as Obstacle { throw obstacle } catch {
            throw Obstacle("Its QEMU does not tell what it is made of: \(error).")
        }
    }

    /// Who writes into guest memory past QEMU's page tables, from what `info qtree` and `info network` say; nil: nobody.
    /// The back-end of a network device stands in the second only.
    static func foreignWriter(devices: String, network: String) -> String? {
        if let device = foreignDevices.first(where: { devices.contains("dev: \($0)") }) { return "a \(device) device" }
        return foreignDevices.first { network.contains("type=\($0)") || network.contains("type=vhost-\($0)") }
            .map { "a \($0) network back-end" }
    }

    /// - Throws: `Obstacle` when there is no RAM in a file.
    init(_ candidate: Candidate) throws(Obstacle) {
        let pid = candidate.pid
        guard let text = try? ProcFile.read("/proc/\(pid)/maps") else {
            throw Obstacle("Its memory map cannot be read.")
        }
        let maps = MappedRange.parse(text)
        var blocks: [Block] = []
        for info in candidate.infos where info.usedBytes > 0 {
            guard
                let range = MachineMemory.sharedRange(for: (info.name, info.usedBytes), in: maps, at: info.hostAddress)
            else { continue }
            let isRebased = range.path.hasPrefix(MemoryRebase.filePrefix)
            guard let path = MachineMemory.fileDescriptorPath(of: range, pid: pid), FileSystem.isMemory(path) else {
                throw Obstacle("RAM block \(info.name) is in a file that is not in memory: \(range.path).")
            }
            blocks.append(
                Block(
                    name: info.name, byteCount: info.usedBytes, address: range.start, path: path,
                    fileOffset: range.offset,
                    isSentByQemu: isRebased || (candidate.namedFilesOnly && range.path.hasPrefix("/memfd:")),
                    isRebased: isRebased))
        }
        guard !blocks.isEmpty else {
            throw Obstacle(
                "None of its memory is in a shared file (-object memory-backend-file,share=on; "
                    + "`apus vm run` starts VMs so; --rebase-memory moves it into one).")
        }
        self.init(blocks: blocks, usesDirectIO: candidate.usesDirectIO)
    }

    /// For the offer: the destination checks that it can own the same blocks.
    var layout: Layout? { try? Layout(blocks.map { ($0.name, $0.byteCount) }) }

    /// Maps the blocks and begins to watch them: from now on every write of the guest is seen.
    ///
    /// Blocks; not for the cooperative pool.
    /// - Parameter drain: see ``DirectMemory/Drain``; used only where disks need it.
    func attach(pid: Int32, journal: String, drain: DirectMemory.Drain?) throws(Obstacle) -> DirectMemory {
        guard let layout else { throw Obstacle("Its RAM blocks are not usable.") }
        let files = blocks.compactMap { try? FileIdentity.of(path: $0.path) }
        if let writer = FileSharers.writer(of: files, besides: [pid, ProcessInfo.processInfo.processIdentifier]) {
            throw Obstacle(
                "Process \(writer.pid) (\(writer.name)) has its memory mapped too, and its writes would not be seen.")
        }
        do {
            let windows = try windows()
            let areas = blocks.map { WriteTracker.Area(address: $0.address, byteCount: $0.byteCount) }
            let tracker = try WriteTracker.attach(pid: pid, areas: areas, journal: journal)
            return DirectMemory(
                layout: layout, sentByQemu: Set(blocks.filter(\.isSentByQemu).map(\.name)), windows: windows,
                tracker: tracker, drain: usesDirectIO ? drain : nil)
        } catch { throw Obstacle("Its memory cannot be watched: \(error)") }
    }

    /// What a tracker leaves behind for a successor, should this agent die.
    static func journalPath(runDirectory: String) -> String { runDirectory + "/write-tracker.json" }
}

extension DirectAccess {
    /// The blocks as an offer names them: `NAME BYTES`, a line each.
    var offered: String { blocks.map { "\($0.name) \($0.byteCount)" }.joined(separator: "\n") }

    /// - Returns: nil when the text is not what ``offered`` makes.
    static func parse(offered text: String) -> [(name: String, byteCount: UInt64)]? {
        var blocks: [(String, UInt64)] = []
        for line in text.split(separator: "\n") {
            guard let space = line.lastIndex(of: " "), let bytes = UInt64(line[line.index(after: space)...]),
                blocks.count < Limits.ramBlocks
            else { return nil }
            blocks.append((String(line[..<space]), bytes))
        }
        return blocks.isEmpty ? nil : blocks
    }
}

extension BlockDevice.Inserted {
    /// Drivers that hand guest memory to a device or to another process: QEMU's own NVMe driver (VFIO), libblkio's.
    var writesFromOutside: Bool {
        ["nvme://", "\"driver\": \"nvme", "virtio-blk-v", "nvme-io_uring"].contains {
            file.contains($0) || driver.contains($0)
        }
    }
}
