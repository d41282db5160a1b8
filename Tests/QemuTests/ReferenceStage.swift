import ApusAPI
import ApusLab
import Testing

/// Two agents that refer to what is elsewhere, and a guest with a disk in its page cache on the first.
struct ReferenceStage {
    static let vm = "g"
    static let cacheMiB = 64
    /// A quarter of the image is zeros.
    static let cachePages = UInt64(cacheMiB * 256 * 3 / 4)

    let pair: HostPair
    let source: Agent
    let destination: Agent

    /// Its memory is 32 MB that it proves, and the disk.
    static var workload: Workload {
        var workload = Workload(name: "cached", pattern: .idle)
        workload.pagesPerS = 0
        workload.regionMiB = 32
        workload.hotMiB = 8
        workload.memoryKiB = 320 * 1024 + 8
        workload.pageCacheMiB = cacheMiB
        return workload
    }

    static func agents(
        in lab: Lab, rate: UInt64 = 1_000_000_000, program: String? = nil, _ change: (inout ApusPeer) -> Void = { _ in }
    ) async throws -> ReferenceStage {
        let pair = try await HostPair.make(in: lab, rate: rate)
        var peer = ApusPeer(program: program ?? ApusPeer.findProgram(), qemu: QemuProgram.installed)
        peer.refers = true
        change(&peer)
        return ReferenceStage(
            pair: pair,
            source: try await Agent.start("a", peer, pair.source, lab, port: 4600),
            destination: try await Agent.start("b", peer, pair.destination, lab, port: 4601))
    }

    static func run(_ workload: Workload, _ vm: String, on agent: Agent) async throws {
        let image = try GuestImage.find()
        let accelerator = await Accelerator.probe(qemu: QemuProgram.installed, image: image)
        let console = try await agent.run(
            workload, as: vm, qemu: QemuProgram.installed, image: image, accelerator: accelerator)
        await console.close()
    }

    /// The guest runs, and its disk is indexed.
    static func start(
        _ workload: Workload = workload, in lab: Lab, rate: UInt64 = 1_000_000_000, program: String? = nil,
        _ change: (inout ApusPeer) -> Void = { _ in }
    ) async throws -> ReferenceStage {
        let stage = try await agents(in: lab, rate: rate, program: program, change)
        try await run(workload, vm, on: stage.source)
        try await stage.source.waitForIndexes()
        return stage
    }

    /// Moves the guest there.
    func move(_ options: [String] = []) async throws -> JobStatus {
        try await source.move(Self.vm, to: destination, options)
    }
}

extension JobStatus {
    /// Pages that travelled in this form.
    func pages(_ form: String) -> UInt64 { summary?.forms.first { $0.form == form }?.pages ?? 0 }
}
