public import ApusQMP
import ApusSystem
import Foundation

/// Where a QEMU's RAM blocks can be written from outside.
public struct MachineMemory: Sendable, Equatable {
    public enum Location: Sendable, Equatable {
        /// Open `fileDescriptorPath` read-write and map `length` bytes at `offset`: the very pages of the guest.
        case mapped(fileDescriptorPath: String, offset: UInt64)
        /// `process_vm_writev` to `address` of `pid`.
        case process(pid: Int32, address: UInt64)
        /// Nothing certain was found: pages go through QEMU's stream.
        case stream
    }

    /// By RAM block name, for every block asked for.
    public let locations: [String: Location]

    public init(locations: [String: Location]) { self.locations = locations }
    public subscript(block: String) -> Location { locations[block] ?? .stream }

    /// Private memory smaller than this is never guessed by its size.
    public static let processBytesMin: UInt64 = 16 << 20

    /// Finds the blocks (name and length in bytes) of a running QEMU. What cannot be told for certain is `.stream`.
    ///
    /// - Throws: `CancellationError`.
    public static func locate(blocks: [(name: String, bytes: UInt64)], in machine: Machine) async throws
        -> MachineMemory
    {
        try await locate(blocks: blocks, pid: machine.pid, qmp: machine.qmp)
    }

    public static func locate(
        blocks: [(name: String, bytes: UInt64)], pid: Int32, qmp: QMPClient
    ) async throws -> MachineMemory {
        var infos: [RAMBlockInfo] = []
        do {
            infos = RAMBlockInfo.parse(try await qmp.execute(.human("info ramblock")))
        } catch let error as QMPError {
            _ = error  // Host addresses are a help, not a need.
        }
        guard let maps = try? ProcFile.read("/proc/\(pid)/maps") else { return MachineMemory(locations: [:]) }
        return locate(blocks: blocks, pid: pid, maps: MappedRange.parse(maps), infos: infos) { range in
            fileDescriptorPath(of: range, pid: pid)
        }
    }

    /// The decision itself, pure but for `descriptorPath`: the path under `/proc/PID/fd` of the file behind a range.
    public static func locate(
        blocks: [(name: String, bytes: UInt64)], pid: Int32, maps: [MappedRange], infos: [RAMBlockInfo],
        descriptorPath: (MappedRange) -> String?
    ) -> MachineMemory {
        let addresses = Dictionary(
            infos.compactMap { info in info.hostAddress.map { (info.name, $0) } },
            uniquingKeysWith: { first, _ in first })
        var locations: [String: Location] = [:]
        for block in blocks {
            let shared = sharedRange(for: block, in: maps, at: addresses[block.name])
            if let shared, let path = descriptorPath(shared) {
                locations[block.name] = .mapped(fileDescriptorPath: path, offset: shared.offset)
            } else if shared == nil, let address = privateAddress(of: block, in: maps, at: addresses[block.name]) {
                locations[block.name] = .process(pid: pid, address: address)
            } else {
                locations[block.name] = .stream
            }
        }
        return MachineMemory(locations: locations)
    }

    /// A writable shared mapping of exactly this length: at the address QEMU gives, else the only one, else the only
    /// one whose file bears the block's name.
    static func sharedRange(
        for block: (name: String, bytes: UInt64), in maps: [MappedRange], at address: UInt64?
    ) -> MappedRange? {
        let fitting = maps.filter { $0.shared && $0.writable && $0.inode != 0 && $0.length == block.bytes }
        if let address { return fitting.first { $0.start == address } }
        if fitting.count == 1 {
            // Its size alone does not make a small file the block: QEMU shares rings and ivshmem too.
            let one = fitting[0]
            return block.bytes >= processBytesMin || one.path.contains(fileStem(block.name)) ? one : nil
        }
        let named = fitting.filter { $0.path.contains(fileStem(block.name)) }
        return named.count == 1 ? named[0] : nil
    }

    /// QEMU names the files it makes in a directory `qemu_back_mem.ID. and six random letters`; block names may have a path before the id.
    private static func fileStem(_ block: String) -> String {
        "qemu_back_mem.\(block.split(separator: "/").last.map(String.init) ?? block)."
    }

    /// Private memory of this length: at the address QEMU gives, else the only one.
    static func privateAddress(
        of block: (name: String, bytes: UInt64), in maps: [MappedRange], at address: UInt64?
    ) -> UInt64? {
        guard block.bytes >= processBytesMin else { return nil }
        let writable = maps.filter { !$0.shared && $0.readable && $0.writable && $0.isAnonymous }
        if let address {
            return writable.contains { $0.start <= address && $0.end >= address + block.bytes } ? address : nil
        }
        let fitting = writable.filter { $0.length == block.bytes }
        return fitting.count == 1 ? fitting[0].start : nil
    }

    static func fileDescriptorPath(of range: MappedRange, pid: Int32) -> String? {
        let directory = "/proc/\(pid)/fd"
        let names = (try? FileManager.default.contentsOfDirectory(atPath: directory)) ?? []
        for name in names.compactMap(Int32.init).sorted() {
            let path = "\(directory)/\(name)"
            guard let file = try? FileIdentity.of(path: path) else { continue }
            if file.inode == range.inode, file.deviceMajor == range.deviceMajor, file.deviceMinor == range.deviceMinor {
                return path
            }
        }
        return nil
    }
}

extension MachineMemory {
    /// Answers for one block at a time, without asking QEMU again: its RAM does not move.
    struct Locator: Sendable {
        private let pid: Int32
        private let maps: [MappedRange]
        let infos: [RAMBlockInfo]

        init(_ machine: Machine) async {
            pid = machine.pid
            // Host addresses are a help, not a need.
            infos = RAMBlockInfo.parse((try? await machine.qmp.execute(.human("info ramblock"))) ?? "")
            maps = MappedRange.parse((try? ProcFile.read("/proc/\(machine.pid)/maps")) ?? "")
        }

        func location(of block: String, bytes: UInt64) -> Location {
            MachineMemory.locate(blocks: [(block, bytes)], pid: pid, maps: maps, infos: infos) { range in
                MachineMemory.fileDescriptorPath(of: range, pid: pid)
            }[block]
        }
    }
}
