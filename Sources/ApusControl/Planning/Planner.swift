import ApusAPI
import ApusFabric
import ApusFlow
import ApusMemory
import ApusQMP
import ApusSystem
import Foundation

/// Says what would become of a migration: looks at the link, at a part of the memory, and at what the guest writes.
///
/// ```
///   link probe     LinkProbe       bytes per second, round trip
///   pages          MemorySampler   zeros, what the destination reads itself, bytes of the others on the wire
///   writing        WriteWatch      direct port: looks of 25 ms to 1.2 s -> WorkingSet, and what the written pages are like
///                  QEMU's own measurement, 1 s and 2 s, where RAM cannot be watched
///                  BusyMeter       how busy its vCPUs are -> CPUDemand, how far slowing it down goes
///   memory of it   VMHistory       what its stops and starts cost before, and pages that were sent again
///                        `--> Forecast.band for each way that the VM can go
/// ```
struct Planner {
    let machines: Machines
    let store: Store
    let config: AgentConfig
    let content: ContentDesk

    static let secondsRange = 0.5...60
    /// Until the first page is sent, of a VM that was never moved: the other QEMU starts. As measured (medians of 71 and
    /// 44 ms, Docs/Numbers/targets-1G.json).
    private static let prepareMs = 70.0
    /// A part of the link, long enough for TCP to find its speed.
    private static let probeMs = 300.0

    func plan(_ request: PlanRequest, peer: Endpoint) async throws -> PlanReport {
        guard Self.secondsRange.contains(request.seconds) else {
            throw Problem(
                "seconds-invalid", "The guest cannot be watched for \(request.seconds) s.",
                advice: "Give 0.5 to 60 s.")
        }
        let machine = try await machines.checkOut(request.vm, job: "plan-" + request.vm)
        let seen = await Result { try await look(at: machine, request, peer) }
        await OutgoingTransfer.takeBackTracker(runDirectory: machine.runDirectory)
        try? await machines.giveBack(machine)
        return try seen.get()
    }

    private func look(at machine: Machine, _ request: PlanRequest, _ peer: Endpoint) async throws -> PlanReport {
        let link: LinkQuality
        do {
            link = try await offPool("apus-probe") { try LinkProbe.measure(peer, ms: Self.probeMs) }
        } catch let error as FabricError {
            throw Problem(SessionProblem(error, dialling: peer, as: request.host))
        }
        var notes: [String] = []
        var ways: [(port: MemoryPort, again: AgainBytes)] = []
        let known = (try? await store.history(of: request.vm)) ?? VMHistory()
        let memory = await MachineMemory.Locator(machine)
        let layout = try await Self.layout(of: machine)
        let ports = layout.blocks.map { memory.port(of: $0) }
        var sample = MemorySample(pages: 0, zeroPages: 0, bytesPerPage: Double(Limits.pageBytes))
        if let sampler = try MemorySampler(layout, ports) {
            let references =
                request.references ?? true
                ? try await content.survey(machine, sampler, peer, host: request.host, &notes) : nil
            sample = try await offPool("apus-sample") { try sampler.take(linkBytesPerS: link.bytesPerS, references) }
        } else {
            notes.append("No page could be read past QEMU: all are taken for pages that do not compress.")
        }
        let first = sample.bytesPerPage + AgainBytes.pageHeadBytes
        var history = WorkingSetHistory()
        var place: WrittenPlace?
        let meter = await machine.vcpuThreads().map { BusyMeter(pid: machine.pid, threads: $0) }
        do {
            let access = try DirectAccess(await DirectAccess.examine(machine))
            let watch = try await watch(machine, access, seconds: request.seconds, linkBytesPerS: link.bytesPerS)
            history = watch.history
            ways.append((.direct, AgainBytes(watch) ?? AgainBytes(all: first)))
            place = watch.place
        } catch let obstacle as DirectAccess.Obstacle {
            notes.append("It cannot go by the direct port. \(obstacle)")
            history = try await Self.askQemu(machine, memoryBytes: layout.byteCount)
        }
        history.demand = meter?.share.map { CPUDemand(share: $0) }
        ways.append((.stream, ways.first?.again ?? AgainBytes(all: min(first, known.againBytesPerPage ?? first))))
        guard let workingSet = history.curve else {
            throw Problem("vm-unresponsive", "\(request.vm)'s QEMU does not tell what its guest writes.")
        }
        var remembered = known
        remembered.learn(history, atHour: VMHistory.hour(of: Date()))
        remembered.learn(link: link.bytesPerS, to: request.host)
        if let direct = ways.first(where: { $0.port == .direct }) {
            VMHistory.mix(&remembered.againBytesPerPage, direct.again.all)
        }
        try? await store.save(remembered, of: request.vm)
        let options = ways.flatMap { way in
            var input = ForecastInput(
                pages: Double(layout.pageCount) * (1 - sample.zeroShare),
                firstBytesPerPage: sample.bytesPerPageReferred + AgainBytes.pageHeadBytes,
                againBytesPerPage: way.again.all, linkBytesPerS: link.bytesPerS, lanes: config.link.lanes,
                workingSet: workingSet, maxDowntimeMs: Double(request.maxDowntimeMs),
                fixedDowntimeMs: known.fixedDowntimeMs ?? SwitchGate.fixedMs,
                prepareMs: known.prepareMs ?? Self.prepareMs, closing: way.port == .direct ? .direct : .stream)
            // A curve that is one set has both kinds in it.
            if workingSet.hasFresh {
                (input.hotBytesPerPage, input.freshBytesPerPage) = (way.again.hot, way.again.fresh)
            }
            if let place {
                let passBytes = input.pages * input.firstBytesPerPage
                input.writtenSpan = place.span(passBytes: passBytes, bytesPerPage: way.again.whole)
            }
            return Self.options(way.port, input)
        }.sorted { $0.rank < $1.rank }
        return PlanReport(
            vm: request.vm, host: request.host, takenAt: Date(), maxDowntimeMs: request.maxDowntimeMs,
            linkBytesPerS: link.bytesPerS, roundTripMs: link.roundTripMs, memoryBytes: layout.byteCount,
            zeroShare: sample.zeroShare, diskShare: sample.share(sample.diskPages),
            snapshotShare: sample.share(sample.snapshotPages), squeezedShare: sample.share(sample.squeezedPages),
            bytesPerPage: sample.bytesPerPageReferred,
            workingSetBytes: workingSet.dirtied(inMs: 10_000) * Double(Limits.pageBytes),
            writtenBytesPerS: workingSet.dirtied(inMs: 1000) * Double(Limits.pageBytes), options: options, notes: notes)
    }

    private static func layout(of machine: Machine) async throws -> Layout {
        let infos = RAMBlockInfo.parse(try await machine.qmp.execute(.human("info ramblock")))
        return try Layout(infos.filter { $0.usedBytes > 0 }.map { ($0.name, $0.usedBytes) })
    }

    private func watch(
        _ machine: Machine, _ access: DirectAccess, seconds: Double, linkBytesPerS: Double
    ) async throws -> WriteWatch {
        let journal = DirectAccess.journalPath(runDirectory: machine.runDirectory)
        await OutgoingTransfer.takeBackTracker(runDirectory: machine.runDirectory)
        let pid = machine.pid
        return try await offPool("apus-watch") {
            let memory = try access.attach(pid: pid, journal: journal, drain: nil)
            let watch = Result { try WriteWatch.take(memory, seconds: seconds, linkBytesPerS: linkBytesPerS) }
            try memory.detach()
            return try watch.get()
        }
    }

    /// 128 MB are hashed in a fraction of a second.
    private static let askedPages = 32_768
    /// QEMU compares the hashes of some pages before and after: whole seconds only.
    private static func askQemu(_ machine: Machine, memoryBytes: UInt64) async throws -> WorkingSetHistory {
        // The few that it looks at by default may all be pages that a small guest did not write.
        let perGiB = min(max(Self.askedPages * (1 << 30) / max(Int(memoryBytes), 1), 128), 16384)
        var history = WorkingSetHistory()
        var endMs = 0.0
        for seconds in [1, 2] {
            _ = try await machine.qmp.execute(.calcDirtyRate(calcTimeS: seconds, samplePagesPerGiB: perGiB))
            let spanMs = Double(seconds) * 1000
            endMs += spanMs
            for _ in 0..<20 {
                try await Task.sleep(for: .milliseconds(seconds * 250))
                let info = try await machine.qmp.execute(.queryDirtyRate)
                guard info.status == "measured", let rate = info.dirtyRateMiBps else { continue }
                let bytes = Double(rate) * 1_048_576 * Double(seconds)
                history.add(.init(endMs: endMs, spanMs: spanMs, pages: bytes / Double(Limits.pageBytes)))
                break
            }
        }
        return history
    }

    /// Each way by this port: memory first, with a slower guest where that is needed; by the direct port the guest first, too.
    private static func options(_ port: MemoryPort, _ input: ForecastInput) -> [PlanOption] {
        let plain = option(port, .dsm, input, Forecast.rounds)
        var all = [plain]
        let slowed = Forecast.move(input, slowsDown: true)
        if plain.ending == .tooBusy, slowed.ending != .tooBusy {
            var option = option(port, .dsm, input) { Forecast.move($0, slowsDown: true) }
            (option.ending, option.slowedTo) = (.slowed, 1 - slowed.slowedBy)
            all.append(option)
        }
        guard port == .direct else { return all }
        return all + [option(port, .hybrid, input, Forecast.hybrid), option(port, .postcopy, input, Forecast.postcopy)]
    }

    private static func option(
        _ port: MemoryPort, _ mode: MigrationMode, _ input: ForecastInput, _ forecast: (ForecastInput) -> Forecast
    ) -> PlanOption {
        let band = Forecast.band(input, forecast)
        func range(_ value: (Forecast) -> Double) -> PlanRange {
            let ends = [value(band.low), value(band.likely), value(band.high)]
            return PlanRange(low: ends.min() ?? 0, likely: value(band.likely), high: ends.max() ?? 0)
        }
        return PlanOption(
            port: port, mode: mode, ending: PlanOption.Ending(band.likely.ending), wireBytes: range(\.wireBytes),
            totalMs: range(\.totalMs), downtimeMs: range(\.downtimeMs))
    }
}

extension PlanOption {
    /// The first ones are recommended: what ends without more, then what slows the VM down, then what needs both hosts until
    /// the last page has come. Of equals, the direct port.
    fileprivate var rank: Int {
        let way =
            switch (ending, mode) {
            case (.tooBusy, _): 4
            case (.slowed, _): 1
            case (_, .hybrid): 2
            case (_, .postcopy): 3
            default: 0
            }
        return way * 2 + (port == .direct ? 0 : 1)
    }
}

extension PlanOption.Ending {
    init(_ ending: Forecast.Ending) {
        self =
            switch ending {
            case .converges: .converges
            case .fits: .fits
            case .tooBusy: .tooBusy
            case .follows: .follows
            }
    }
}

extension Result where Failure == any Error {
    init(_ body: () async throws -> Success) async {
        do { self = .success(try await body()) } catch { self = .failure(error) }
    }
}
