import ApusAPI
import ApusLab
import Foundation
import Testing

/// What becomes of a disk image between its index and the migration: not a page of the guest is on it any more.
enum ImageFault: String, CaseIterable {
    /// Other bytes in the same file.
    case overwritten
    /// Another file at its path, which only the destination's QEMU opens.
    case replaced
    case cut
    /// It gives I/O errors.
    case unreadable
}

extension ImageFault {
    /// A file; of a disk that gives errors, a block device.
    func makeImage(mebibytes: Int, in lab: Lab) async throws -> (path: String, strike: () async throws -> Void) {
        if self == .unreadable {
            let device = try await LoopDevice.pageCacheDisk(mebibytes: mebibytes, in: lab)
            return (device.path, { try await device.fail() })
        }
        let path = lab.path("disk.img")
        return (path, { try strike(path, mebibytes) })
    }

    private func strike(_ path: String, _ mebibytes: Int) throws {
        let target = self == .replaced ? path + ".new" : path
        if self == .replaced { try Data().write(to: URL(fileURLWithPath: target)) }
        let file = try #require(FileHandle(forUpdatingAtPath: target))
        if self == .cut {
            try file.truncate(atOffset: 1 << 20)
        } else {
            let noise = Data((0..<(1 << 20)).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ $0 >> 12) })
            for _ in 0..<mebibytes { try file.write(contentsOf: noise) }
        }
        try file.close()
        guard target != path else { return }
        try FileManager.default.removeItem(atPath: path)
        try FileManager.default.moveItem(atPath: target, toPath: path)
    }
}

extension RealGuests {
    /// Disks, stores and connections that fail while pages are referred to.
    @Suite(.enabled(if: HostPair.canMakeNamespaces, "needs root")) struct ContentFaultTests {
        private static let vm = ReferenceStage.vm
        private static let cacheMiB = ReferenceStage.cacheMiB
        private static let cachePages = ReferenceStage.cachePages
        /// Kernel and initrd stay as they were: more pages than they have.
        private static let kernelPages: UInt64 = 6000

        /// What is referred to in vain travels, and the gate closes long before each page of it was tried.
        @Test(.timeLimit(.minutes(2)), arguments: ImageFault.allCases) func theImageFails(how: ImageFault) async throws
        {
            try await Lab.with { lab in
                var workload = ReferenceStage.workload
                let image = try await how.makeImage(mebibytes: Self.cacheMiB, in: lab)
                workload.pageCacheImage = image.path
                let stage = try await ReferenceStage.start(workload, in: lab)
                try await image.strike()
                let job = try await stage.move(["--port", "direct", "--verify"])
                #expect(job.phase == .completed && job.pages("disk") < Self.kernelPages, "\(job)")
                let refused = job.notes.compactMap {
                    $0.contains("travelled after all") ? Int($0.prefix { $0 != " " }) : nil
                }
                #expect(refused.count == 1 && refused[0] > 0 && refused[0] < Int(Self.cachePages / 2), "\(job)")
                #expect(job.notes.contains { $0.contains("left out for a while") }, "\(job)")
                #expect(job.summary?.repairedPages == 0, "\(job)")
                try await stage.destination.expectProof(of: Self.vm)
            }
        }

        /// The destination has another disk of the same size at the same path.
        @Test(.timeLimit(.minutes(2))) func theDestinationHasAnotherImage() async throws {
            try await Lab.with { lab in
                let (here, there) = (lab.path("disk.img"), lab.path("other.img"))
                for path in [here, there] {
                    let noise = try #require(FileHandle(forReadingAtPath: "/dev/urandom"))
                    try #require(try noise.read(upToCount: Self.cacheMiB << 20)).write(to: URL(fileURLWithPath: path))
                    try noise.close()
                }
                var workload = ReferenceStage.workload
                workload.pageCacheImage = here
                let stage = try await ReferenceStage.start(
                    workload, in: lab, program: try Self.program(thatSees: there, at: here, in: lab))
                let job = try await stage.move(["--port", "direct", "--verify"])
                #expect(job.phase == .completed && job.pages("disk") < Self.kernelPages, "\(job)")
                #expect(job.notes.contains { $0.contains("travelled after all") }, "\(job)")
                #expect(job.summary?.repairedPages == 0, "\(job)")
                try await stage.destination.expectProof(of: Self.vm)
            }
        }

        /// An `apus` whose agent at the destination, and its QEMUs, find another file there: what is mounted within a network
        /// namespace is seen there alone.
        private static func program(thatSees other: String, at path: String, in lab: Lab) throws -> String {
            let apus = URL(fileURLWithPath: ApusPeer.findProgram()).path
            let script = lab.path("apus-elsewhere")
            let text = """
                #!/bin/sh
                case "$*" in "agent "*:4601" "*) mount --bind \(other) \(path) ;; esac
                exec \(apus) "$@"

                """
            try text.write(toFile: script, atomically: true, encoding: .utf8)
            try FileManager.default.setAttributes([.posixPermissions: 0o755], ofItemAtPath: script)
            return script
        }

        /// The VM moves; what it left is not kept, and the next one is as soon as there is room.
        @Test(.timeLimit(.minutes(3))) func theStoreHasNoRoom() async throws {
            try await Lab.with { lab in
                let room = try await SmallFileSystem.make("a/state/content/store", mebibytes: 8, in: lab)
                let stage = try await ReferenceStage.start(in: lab)
                let (source, destination) = (stage.source, stage.destination)
                let there = try await stage.move(["--verify"])
                #expect(there.phase == .completed && there.summary?.repairedPages == 0, "\(there)")
                try await destination.expectProof(of: Self.vm)
                let given = try await wait(for: "the store to give up", seconds: 30) {
                    let store = try await source.contentStore()
                    return store.problem == nil ? nil : store
                }
                #expect(given.images == [], "\(given)")
                #expect(given.problem?.contains("memory image of \(Self.vm) was not kept") == true, "\(given)")
                // Nothing of it stays behind: the rest of the host needs the room.
                #expect(given.byteCount < 1 << 20, "\(given)")
                try await room.grow(toMebibytes: 512)
                try await destination.waitForIndexes()
                let back = try await destination.move(Self.vm, to: source, ["--verify"])
                #expect(back.phase == .completed && back.pages("snapshot") == 0, "\(back)")
                #expect(back.summary?.repairedPages == 0, "\(back)")
                try await source.waitForIndexes()
                let again = try await stage.move()
                #expect(again.phase == .completed, "\(again)")
                try await source.waitForImage(of: Self.vm)
                #expect(try await source.contentStore().problem == nil)
            }
        }

        /// References that nobody has answered travel as pages, and the others are not sent again.
        @Test(.timeLimit(.minutes(2)), arguments: ["direct", "stream"])
        func theConnectionsAreReset(port: String) async throws {
            try await Lab.with { lab in
                let stage = try await ReferenceStage.start(in: lab, rate: 50_000_000)
                let source = stage.source
                let text = try await source.apus(
                    [
                        "migrate", Self.vm, stage.destination.endpoint, "--detach", "--json", "--port", port,
                        "--verify",
                    ])
                let job = try Agent.decode(JobStatus.self, text)
                for times in 1...3 {
                    try await source.job(of: Self.vm, seconds: 30) {
                        $0.phase.isFinal || $0.progress.wireBytes > UInt64(times) << 21
                    }
                    try await stage.pair.resetConnections(of: stage.pair.source)
                    let words = times == 1 ? "once" : "\(times) times"
                    try await source.job(of: Self.vm, seconds: 20) { now in
                        now.phase.isFinal || now.notes.contains { $0.contains("restored \(words)") }
                    }
                }
                let ended = try await source.end(of: job.id, seconds: 60)
                #expect(ended.phase == .completed && ended.pages("disk") > Self.cachePages * 8 / 10, "\(ended)")
                #expect(ended.notes.contains { $0.contains("restored 3 times") }, "\(ended)")
                #expect(ended.summary?.repairedPages == 0, "\(ended)")
                try await stage.destination.expectProof(of: Self.vm)
            }
        }
    }
}
