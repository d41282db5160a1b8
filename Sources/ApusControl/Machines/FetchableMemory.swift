import ApusFlow
import ApusMemory
import ApusQMP
import ApusSystem
import Foundation

/// RAM blocks of a VM that its agent can read past QEMU, wherever they are. Pages of them may stay here when the guest moves
/// by the stream port, and are read from the stopped QEMU's process as they are asked for.
struct FetchableMemory: Sendable {
    let layout: Layout
    /// One per block.
    let ports: [BlockPort]
    /// What the guest wrote before it moved.
    let recorded = Monitor(RecordOutcome())

    /// Finds them. A wrong guess would be read as guest memory: private memory counts only where QEMU says that it is there.
    ///
    /// - Returns: nil: there is none.
    init?(_ machine: Machine) async {
        let memory = await MachineMemory.Locator(machine)
        // QEMU 7.2 does not tell where its blocks are, but where the guest's memory begins.
        let reply = try? await machine.qmp.execute(.human("gpa2hva 0"))
        let start = reply.flatMap(Self.hostAddress(reply:))
        let found = memory.infos.filter { info in
            switch memory.location(of: info.name, bytes: info.usedBytes) {
            case .mapped: info.usedBytes > 0
            case .process(_, let address): info.hostAddress == address || start == address
            case .stream: false
            }
        }
        guard !found.isEmpty, let layout = try? Layout(found.map { ($0.name, $0.usedBytes) }) else { return nil }
        let ports = layout.blocks.map { memory.port(of: $0) }
        for case .stream in ports { return nil }
        self.init(layout: layout, ports: ports)
    }

    /// Of `Host virtual address for 0x0 (pc.ram) is 0x7fd79d200000`.
    static func hostAddress(reply: String) -> UInt64? {
        guard let word = reply.split(whereSeparator: \.isWhitespace).last, word.hasPrefix("0x") else { return nil }
        return UInt64(word.dropFirst(2), radix: 16)
    }

    /// Where only odd blocks may stay, nothing is gained by moving first.
    func isMost(of machine: Machine) -> Bool { layout.byteCount >= machine.definition.ramBytes / 2 }

    /// For the offer, and for a successor; see ``DirectAccess/parse(offered:)``.
    var offered: String { layout.blocks.map { "\($0.name) \($0.byteCount)" }.joined(separator: "\n") }

    /// What the destination has taken of the offer, in its order.
    ///
    /// - Returns: nil: not what was offered.
    func taken(_ text: String) -> FetchableMemory? {
        guard let blocks = DirectAccess.parse(offered: text), let wanted = try? Layout(blocks) else { return nil }
        var ports: [BlockPort] = []
        for block in wanted.blocks {
            let index = layout.blocks.firstIndex { $0.name == block.name && $0.byteCount == block.byteCount }
            guard let index else { return nil }
            ports.append(self.ports[index])
        }
        return FetchableMemory(layout: wanted, ports: ports)
    }

    private init(layout: Layout, ports: [BlockPort]) {
        self.layout = layout
        self.ports = ports
    }

    // MARK: For the successor of an agent that dies while it gives pages

    private static func path(_ runDirectory: String) -> String { runDirectory + "/pull.blocks" }

    func write(_ runDirectory: String) throws {
        try Data(offered.utf8).write(to: URL(fileURLWithPath: Self.path(runDirectory)), options: .atomic)
    }

    static func remove(_ runDirectory: String) { try? FileManager.default.removeItem(atPath: path(runDirectory)) }

    /// - Returns: nil: no pages stayed, or they stayed by the direct port.
    static func left(_ machine: Machine) async throws(DirectAccess.Obstacle) -> FetchableMemory? {
        guard let text = FileManager.default.contents(atPath: path(machine.runDirectory)) else { return nil }
        guard let memory = await FetchableMemory(machine)?.taken(String(decoding: text, as: UTF8.self)) else {
            throw DirectAccess.Obstacle("Its RAM blocks are not found again.")
        }
        return memory
    }
}
