import ApusQMP
import ApusSystem
import Foundation

/// Gives the private RAM of a running VM a file (`apus migrate --rebase-memory`), so that the direct port can have it.
/// Piece by piece, with a pause of some milliseconds for each; see ``MemoryRebase``.
struct MemoryRebasing: Sendable {
    let machine: Machine
    private let area: WriteTracker.Area

    /// What the guest noticed of it: the length of each pause, milliseconds.
    typealias Pauses = [Double]

    /// - Returns: nil: the VM's RAM is shared already.
    /// - Throws: `Obstacle`; nothing was touched.
    init?(_ machine: Machine, _ infos: [RAMBlockInfo]) throws(DirectAccess.Obstacle) {
        self.machine = machine
        let bytes = machine.definition.ramBytes
        guard (try? QemuCommandLine(machine.definition.command))?.choosesMemory == false else {
            throw DirectAccess.Obstacle(
                "Its command chooses a memory backend, so that its RAM would be private at the destination again.")
        }
        guard let text = try? ProcFile.read("/proc/\(machine.pid)/maps"),
            let info = infos.first(where: { $0.usedBytes == bytes })
        else { throw DirectAccess.Obstacle("None of its RAM blocks has the VM's \(bytes >> 10) KiB.") }
        let maps = MappedRange.parse(text)
        if MachineMemory.sharedRange(for: (info.name, bytes), in: maps, at: info.hostAddress) != nil { return nil }
        guard
            let address = Self.begun(bytes, pid: machine.pid, maps)
                ?? MachineMemory.privateAddress(of: (info.name, bytes), in: maps, at: info.hostAddress)
        else { throw DirectAccess.Obstacle("Its RAM cannot be told from other memory of its QEMU.") }
        area = WriteTracker.Area(address: address, byteCount: bytes)
    }

    /// Where memory is of which some pieces are in their file: the file is as long as the whole.
    private static func begun(_ bytes: UInt64, pid: Int32, _ maps: [MappedRange]) -> UInt64? {
        guard let piece = maps.first(where: { $0.path.hasPrefix(MemoryRebase.filePrefix) && $0.start >= $0.offset }),
            let path = MachineMemory.fileDescriptorPath(of: piece, pid: pid),
            (try? FileIdentity.of(path: path))?.size == bytes
        else { return nil }
        return piece.start - piece.offset
    }

    /// Blocks for about a second per GiB in use; not for the cooperative pool.
    ///
    /// - Parameter isWanted: asked before each pause. What is done by then stays, and the next attempt goes on from there.
    /// - Throws: `InjectionError`, `QMPError`, `Obstacle` when it is no longer wanted. The VM runs on in any case.
    func run(isWanted: @escaping @Sendable () -> Bool) throws -> Pauses {
        let pause = ShortPause(machine: machine)
        var stopped: Instant?
        var pauses: Pauses = []
        _ = try MemoryRebase.run(
            pid: machine.pid, area: area, journal: DirectAccess.journalPath(runDirectory: machine.runDirectory),
            stopGuest: {
                guard isWanted() else { throw DirectAccess.Obstacle("The job was given up.") }
                let asked = Instant.now()
                if try blocking({ try await pause.begin() }) { stopped = asked }
            },
            resumeGuest: {
                guard let began = stopped else { return }
                stopped = nil
                try blocking { try await pause.end() }
                pauses.append(Instant.now().ms(since: began))
            })
        return pauses
    }
}

/// A guest that stands still for some milliseconds, outside the record of any job. A mark in the VM's run directory tells
/// the successor of an agent that dies meanwhile to let it go on.
struct ShortPause: Sendable {
    let machine: Machine

    private var mark: String { machine.runDirectory + "/short-pause" }

    /// - Returns: false: the guest does not run anyway, and is not to be resumed.
    func begin() async throws -> Bool {
        guard await machine.runState() == .running else { return false }
        try Data().write(to: URL(fileURLWithPath: mark))
        try await machine.qmp.execute(.stop)
        return true
    }

    /// Tries again and again: there is nobody else to let the guest go on.
    func end() async throws {
        for attempt in 1...Self.attempts {
            do {
                try await machine.qmp.execute(.cont)
                break
            } catch {
                if attempt == Self.attempts { throw error }
                try await Task.sleep(for: .milliseconds(500))
            }
        }
        try FileManager.default.removeItem(atPath: mark)
    }
    private static let attempts = 10

    /// Lets a guest go on that an agent which died has left standing. To be called by an agent that begins.
    func takeUp() async {
        guard FileManager.default.fileExists(atPath: mark), let state = await machine.runState() else { return }
        if state == .paused {
            _ = try? await end()
        } else {
            try? FileManager.default.removeItem(atPath: mark)
        }
    }
}
