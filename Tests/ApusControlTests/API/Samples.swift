import ApusAPI
import Foundation

/// One value of each API type with every field present.
enum Samples {
    static let problem = Problem("vm-unknown", "This host has no VM \"nope\".", advice: "It has: web.")
    static let agent = AgentInfo(
        version: "0.1.0", hostName: "a", pid: 7, startedAt: Date(timeIntervalSince1970: 1_795_246_200.125),
        link: "127.0.0.1:7421", insecure: false, stateDirectory: "/s", runDirectory: "/r", hosts: ["b": "10.0.0.2"])
    static let run = RunRequest(name: "web", command: ["qemu-system-x86_64"], workingDirectory: "/")
    static let adopt = AdoptRequest(qmpPath: "/q", name: "web", command: ["qemu-system-x86_64"])
    static let machine = MachineSummary(
        name: "web", state: .running, origin: .run, pid: 4711, machineType: "pc-q35-7.2", qemuVersion: "7.2.22",
        memoryBytes: 1 << 30, vcpus: 2, qmpPath: "/run/apus/vms/web/qmp.sock",
        command: ["qemu-system-x86_64", "-append", "it's quiet", "-m", "1G"], job: "j1",
        note: "Guest RAM stays private.")
    static let migrate = MigrateRequest(
        vm: "web", host: "b", maxDowntimeMs: 100, bandwidthMBps: 50, timeoutS: 60, deadlineS: 50,
        allow: [.throttle], port: .direct, mode: .dsm, verify: true, rebaseMemory: true, references: false)
    static let planRequest = PlanRequest(vm: "web", host: "b", maxDowntimeMs: 100, seconds: 1.5, references: false)
    static let planOption = PlanOption(
        port: .direct, mode: .dsm, ending: .converges, wireBytes: .init(low: 170e6, likely: 172e6, high: 180e6),
        totalMs: .init(low: 1900, likely: 2000, high: 2150), downtimeMs: .init(low: 15.1, likely: 17, high: 21),
        slowedTo: 0.4)
    static let forecast = ForecastRecord(
        job: "j1", vm: "web", host: "b", endedAt: Date(timeIntervalSince1970: 1_795_246_203.5), port: .direct,
        basis: .plan, atStart: .init(totalMs: 3_300, wireBytes: 200e6, downtimeMs: 40),
        atGate: .init(totalMs: 3_500, wireBytes: 210e6, downtimeMs: 44),
        actual: .init(totalMs: 3_421, wireBytes: 211.3e6, downtimeMs: 41.23))
    static let accuracy = AccuracyReport([forecast])
    static let plan = PlanReport(
        vm: "web", host: "b", takenAt: Date(timeIntervalSince1970: 1_795_246_200.125), maxDowntimeMs: 100,
        linkBytesPerS: 117e6, roundTripMs: 0.12, memoryBytes: 1 << 30, zeroShare: 0.61, diskShare: 0.2,
        snapshotShare: 0.01, squeezedShare: 0.12, bytesPerPage: 1712, workingSetBytes: 33.5e6, writtenBytesPerS: 6.1e6,
        options: [planOption], notes: ["No page could be read."])
    static let store = StoreReport(
        path: "/var/lib/apus/content/store", byteCount: 310_000_000, bytesMax: 4 << 30,
        images: [StoredImage(vm: "web", memoryBytes: 1 << 30, usedAt: Date(timeIntervalSince1970: 1_795_246_200.125))],
        disks: [IndexedDisk(path: "/disk", blocks: 70_000, tableBytes: 840_000, state: "indexed")],
        problem: "The disk is full.")
    static let resolve = ResolveRequest(commit: true)

    static var progress: JobProgress {
        var progress = JobProgress()
        progress.elapsedMs = 2300
        progress.round = 3
        progress.memoryTotalBytes = 1 << 30
        progress.memoryRemainingBytes = 212_400_000
        progress.wireBytes = 861_000_000
        progress.rateBytesPerS = 118_400_000
        progress.dirtyRateBytesPerS = 14_210_000
        progress.fraction = 0.625
        progress.predictedRemainingMs = 2041
        progress.predictedDowntimeMs = 41.26
        return progress
    }

    static let lines = LineSummary(
        lineBytes: 128, pages: 900, changedLines: 1800, wireBytes: 240_000, samePages: 100, tableBytes: 14_200_000)

    static let prefetch = PrefetchSummary(
        order: "trend", nearPages: 3_100, trendPages: 11_800, recordedPages: 9_900, restPages: 67_200, lateFaults: 12,
        recordPages: 10_200, recordMs: 306.9, zapMs: 31.2, looksMs: 21.9)

    static var pull: PullSummary {
        var pull = PullSummary(
            missingPages: 98_000, faultedPages: 6_000, pushedPages: 92_000, faults: 420, faultP50Us: 310,
            faultP99Us: 2_900, faultMaxUs: 8_100, stallMs: 190, wholeMs: 3_200)
        pull.faultHistogram = [0, 0, 0, 0, 9, 87, 240, 84]
        (pull.usedPages, pull.foreseenPages, pull.foreseenUsedPages) = (8_400, 24_800, 7_900)
        pull.prefetch = prefetch
        return pull
    }

    static var summary: JobSummary {
        var summary = JobSummary()
        summary.totalMs = 3421
        summary.downtimeMs = 41.23
        summary.downtimeParts = [
            .init(name: "stop", ms: 3.1), .init(name: "last pages", ms: 20), .init(name: "device state", ms: 12.04),
            .init(name: "start", ms: 6.09),
        ]
        summary.qemuDowntimeMs = 38
        summary.predictedDowntimeMs = 45.4
        summary.slowedTo = 0.4
        summary.slowedMs = 812
        summary.rounds = 4
        summary.wireBytes = 211_300_000
        summary.forms = [
            .init(form: "zero", pages: 203_112, wireBytes: 1_200_000),
            .init(form: "raw", pages: 31_001, wireBytes: 127_100_000),
            .init(form: "zstd", pages: 28_031, wireBytes: 83_000_000),
        ]
        summary.installed = ["pc.ram": "mapped", "pc.bios": "stream", "pc.rom": "stream", "vga.vram": "stream"]
        summary.port = .direct
        summary.firstRoundBytes = 209_000_000
        summary.hotPages = 12
        summary.lines = lines
        summary.pull = pull
        summary.verifiedPages = 262_144
        summary.repairedPages = 0
        summary.fenceMs = 0.4
        summary.sourceCPUS = 0.42
        summary.destinationCPUS = 0.513
        return summary
    }

    static func job(_ phase: JobPhase, direction: JobDirection = .outgoing, full: Bool = true) -> JobStatus {
        var job = JobStatus(
            id: "j1", direction: direction, vm: "web", peer: "b", phase: phase,
            startedAt: Date(timeIntervalSince1970: 1_795_246_200.125),
            endedAt: full ? Date(timeIntervalSince1970: 1_795_246_203.5) : nil, maxDowntimeMs: 300, progress: progress,
            summary: full ? summary : nil,
            error: full
                ? Problem("peer-silent", "b said nothing for 5 s.", advice: "Look whether its agent runs.") : nil,
            notes: full ? ["The destination's QEMU is 10.0.13."] : [])
        job.chosen = full ? ChosenWay(mode: .dsm, port: .direct, basis: .plan) : nil
        return job
    }
}
