import ApusFlow
import ApusMemory
import ApusSystem
import Foundation

/// A RAM block of an arriving VM of which pages may be missing while the guest runs: where the agent reaches it.
struct OwnedBlock: Sendable, Equatable, Codable {
    var name: String
    var byteCount: UInt64
    /// In QEMU's address space.
    var address: UInt64
    /// Under `/proc/PID/fd`; nil: private to QEMU.
    var path: String?
    var fileOffset: UInt64

    /// Those of the offered blocks that can be owned here, in the order of the offer.
    ///
    /// - Throws: `Obstacle` when there is none.
    static func find(
        _ offered: [(name: String, byteCount: UInt64)], in machine: Machine
    ) async throws(DirectAccess.Obstacle) -> [OwnedBlock] {
        let candidate = try await DirectAccess.examine(machine)
        let all: [OwnedBlock]
        do throws(DirectAccess.Obstacle) {
            all = try DirectAccess(candidate).blocks.map { OwnedBlock($0) } + (await privateBlocks(of: machine) ?? [])
        } catch {
            guard let found = await privateBlocks(of: machine) else { throw error }
            all = found
        }
        let owned = offered.compactMap { wanted in
            all.first { $0.name == wanted.name && $0.byteCount == wanted.byteCount }
        }
        guard !owned.isEmpty else { throw DirectAccess.Obstacle("None of its RAM blocks is found for certain.") }
        return owned
    }

    /// - Returns: nil: there is none, or what was locked into memory cannot be emptied.
    private static func privateBlocks(of machine: Machine) async -> [OwnedBlock]? {
        guard let memory = await FetchableMemory(machine),
            let status = try? ProcFile.read("/proc/\(machine.pid)/status"),
            ProcFile.field("VmLck", of: status)?.hasPrefix("0") == true
        else { return nil }
        var blocks: [OwnedBlock] = []
        for (block, port) in zip(memory.layout.blocks, memory.ports) {
            guard case .process(let window) = port else { continue }
            blocks.append(
                OwnedBlock(
                    name: block.name, byteCount: block.byteCount, address: window.address, path: nil, fileOffset: 0))
        }
        return blocks.isEmpty ? nil : blocks
    }

    private init(_ block: DirectAccess.Block) {
        self.init(
            name: block.name, byteCount: block.byteCount, address: block.address, path: block.path,
            fileOffset: block.fileOffset)
    }

    private init(name: String, byteCount: UInt64, address: UInt64, path: String?, fileOffset: UInt64) {
        self.name = name
        self.byteCount = byteCount
        self.address = address
        self.path = path
        self.fileOffset = fileOffset
    }

    var area: Pager.Area { Pager.Area(address: address, byteCount: byteCount) }

    /// - Parameter pid: of its QEMU.
    func port(pid: Int32) throws -> BlockPort {
        guard let path else { return .process(ProcessWindow(pid: pid, address: address, byteCount: byteCount)) }
        return .mapped(
            try GuestWindow(try Descriptor.open(path, .readWrite), fileOffset: fileOffset, byteCount: byteCount))
    }
}

extension [OwnedBlock] {
    var layout: Layout? { try? Layout(map { ($0.name, $0.byteCount) }) }
    /// See ``DirectAccess/parse(offered:)``.
    var offered: String { map { "\($0.name) \($0.byteCount)" }.joined(separator: "\n") }
}
