import ApusAPI
import ApusFlow
import ApusQMP
import ApusSystem
import Foundation
import Logging

// What is done about a guest that writes faster than its memory travels.

extension MigrateRequest {
    /// The job's own time limit.
    var limitS: Double? { [timeoutS, deadlineS].compactMap(\.self).min() }

    /// What the operator allows, else the agent's configuration.
    func allows(_ means: MigrationMeans, _ config: AgentConfig.Migrate) -> Bool {
        (allow ?? config.allow).contains(means)
    }
}

extension OutgoingMigration {
    /// A guest that is paused does not write.
    nonisolated static func ladder(
        _ request: MigrateRequest, _ config: AgentConfig.Migrate, guestRunning: Bool, handsOver: Bool,
        elapsedMs: Double,
        handOverMs: Double = Ladder.handOverMs
    ) -> Ladder {
        guard guestRunning else { return Ladder() }
        return Ladder(
            slowsDown: request.allows(.throttle, config), handsOver: handsOver,
            deadlineMs: request.deadlineS.map { $0 * 1000 - elapsedMs }, patienceMs: config.patienceS * 1000,
            handOverMs: handOverMs)
    }

    /// As of now, when memory begins to travel.
    var ladder: Ladder {
        Self.ladder(
            request, services.config.migrate, guestRunning: session.guestRunning, handsOver: pull == .ifNeeded,
            elapsedMs: Instant.now().ms(since: started))
    }

    /// Of the stream port. Whether the guest can move before its memory is known later.
    ///
    /// - Parameter ramBytes: what QEMU may have to send past the link before it does.
    nonisolated static func gate(
        _ request: MigrateRequest, _ config: AgentConfig.Migrate, _ prior: VMHistory, guestRunning: Bool,
        ramBytes: UInt64
    ) -> SwitchGate {
        SwitchGate(
            maxDowntimeMs: Double(request.maxDowntimeMs) * OutgoingTransfer.countedShare,
            ladder: followsAfterMs(request, config, guestRunning: guestRunning) != nil
                ? Ladder()
                : ladder(
                    request, config, guestRunning: guestRunning,
                    handsOver: request.mode?.pull ?? .nothing == .nothing && request.allows(.postcopy, config),
                    elapsedMs: 0, handOverMs: Ladder.handOverMs + Double(ramBytes) / OutgoingTransfer.passBytesPerMs),
            fixedMs: prior.fixedDowntimeMs ?? SwitchGate.fixedMs,
            history: prior.prior(atHour: VMHistory.hour(of: Date())))
    }

    /// What the stream port's rounds do not make less is fetched, and in mode `postcopy` what is left after the time for a record.
    ///
    /// - Returns: so many milliseconds after memory has begun to travel; nil: all of it travels first, or none.
    nonisolated static func followsAfterMs(
        _ request: MigrateRequest, _ config: AgentConfig.Migrate, guestRunning: Bool
    ) -> Double? {
        guard guestRunning else { return nil }
        switch request.mode?.pull ?? .nothing {
        case .rest: return .infinity
        case .everything where config.sendWhileRecording && config.recordMs > 0: return config.recordMs
        case .everything, .nothing, .ifNeeded: return nil
        }
    }

    /// Decided by the stream port's gate.
    func act(on decision: SwitchGate.Decision, _ shortfall: Shortfall) {
        guard session.state == .transferring, session.guestRunning || decision == .open else { return }
        note(decision, shortfall)
        switch decision {
        case .open:
            if let brake = transfer?.brake, brake.share > 0 { try? brake.set(Brake.hardest) }
            gateOpens(predictedDowntimeMs: status.progress.predictedDowntimeMs)
        case .slowDown(let share):
            // The gate sees that it has failed, and takes the next rung.
            do { try transfer?.brake?.set(share) } catch { transfer?.brake?.release() }
        case .handOver:
            if let transfer { handOver(transfer, predictedDowntimeMs: prior.fixedDowntimeMs ?? SwitchGate.fixedMs) }
        case .wait, .refuse: break
        }
    }

    /// Says what was decided, and ends a job that has no way left.
    func note(_ decision: SwitchGate.Decision, _ shortfall: Shortfall) {
        switch decision {
        case .wait, .open: break
        case .slowDown(let share):
            marks.slowest = max(marks.slowest ?? 0, share)
            let speed = Int(((1 - share) * 100).rounded())
            let fits = !shortfall.waitsForQemu && shortfall.neededMs <= Double(request.maxDowntimeMs)
            status.notes.append(
                "After \(Self.seconds(shortfall.elapsedMs)) \(request.vm) is slowed down to \(speed) % of its speed: \(told(shortfall))"
                    + (fits ? " A slower guest has a much shorter one." : ""))
        case .handOver:
            status.notes.append(
                "After \(Self.seconds(shortfall.elapsedMs)) \(request.vm) moves before its memory: \(told(shortfall))")
        // In the first pass only a deadline ends it.
        case .refuse: post(.localFailed(monitor.round <= 1 ? tooSlow() : tooBusy(shortfall)))
        }
    }

    /// Its time is over.
    func passDeadline() {
        guard request.limitS == request.deadlineS, session.state == .transferring else { return post(.deadlinePassed) }
        if monitor.round <= 1 { return post(.localFailed(tooSlow())) }
        guard let shortfall = monitor.shortfall else { return post(.deadlinePassed) }
        post(.localFailed(tooBusy(shortfall)))
    }

    /// Not even the first pass was over.
    private func tooSlow() -> SessionProblem {
        let progress = status.progress
        func megabytes(_ bytes: UInt64) -> String { String(format: "%.0f MB", Double(bytes) / 1e6) }
        let leftS = Double(progress.memoryRemainingBytes) / max(progress.rateBytesPerS, 1)
        let needed = Int(((progress.elapsedMs / 1000 + leftS) * 1.2).rounded(.up))
        let mayMove = request.allows(.postcopy, services.config.migrate)
        let ways = [
            "give it \(needed) s or more (--deadline)", mayMove ? nil : "allow postcopy (--allow)",
            request.bandwidthMBps == nil ? "use a faster link" : "allow it more of the link (--bandwidth)",
        ].compactMap(\.self)
        return SessionProblem(
            "deadline-too-near",
            "\(request.vm)'s memory did not travel once before its deadline of \(Self.seconds((request.deadlineS ?? 0) * 1000)): "
                + "\(megabytes(progress.memoryRemainingBytes)) were left, at \(String(format: "%.1f", progress.rateBytesPerS / 1e6)) MB/s.",
            advice: "It runs on here. To move it, \(ways.joined(separator: ", or ")).")
    }

    private func tooBusy(_ shortfall: Shortfall) -> SessionProblem {
        let config = services.config.migrate
        let missing = MigrationMeans.allCases.filter { !request.allows($0, config) }.map(\.rawValue)
        let ways = [
            "allow a pause of \(Int((shortfall.neededMs / 10).rounded(.up)) * 10) ms (--max-downtime)",
            missing.isEmpty ? nil : "allow \(missing.joined(separator: " or ")) (--allow)",
            "migrate when it writes less",
        ].compactMap(\.self)
        let waited =
            request.deadlineS.map { "before its deadline of \(Self.seconds($0 * 1000))" }
            ?? "within \(Self.seconds(shortfall.elapsedMs))"
        return SessionProblem(
            "guest-too-busy",
            "\(request.vm) did not come to a point \(waited) where it could be moved: \(told(shortfall))",
            advice: "It runs on as fast as before. To move it, \(ways.joined(separator: ", or ")).")
    }

    private func told(_ shortfall: Shortfall) -> String {
        func rate(_ bytesPerS: Double) -> String { String(format: "%.1f MB/s", bytesPerS / 1e6) }
        return
            "it writes \(rate(shortfall.dirtyBytesPerS)) of different memory, the link takes \(rate(shortfall.linkBytesPerS)), "
            + "a pause now would take \(Int(shortfall.neededMs.rounded())) ms of the \(request.maxDowntimeMs) ms allowed"
            + (shortfall.waitsForQemu ? ", but QEMU has not stopped it yet." : ".")
    }

    private static func seconds(_ ms: Double) -> String { String(format: "%.1f s", ms / 1000) }
}

extension OutgoingTransfer {
    /// What the stream port's gate must know of the vCPUs.
    var pedal: ProgressMonitor.Pedal {
        guard let brake, !isDirect else { return .init() }
        let stoppedNs = brake.stoppedNs
        return .init(
            canSlowDown: brake.failure == nil, stoppedNs: stoppedNs, busyShare: stoppedNs == 0 ? brake.busyShare : nil)
    }

    /// nil: it is not known which threads are to be stopped.
    static func brake(of machine: Machine) async -> Brake? {
        await machine.vcpuThreads().map { Brake(pid: machine.pid, threads: $0) }
    }
}

extension Machine {
    /// nil: QEMU does not say which of its threads are vCPUs, or they are not to be found.
    func vcpuThreads() async -> [Int32]? {
        guard let infos = try? await qmp.execute(.queryCPUsFast) else { return nil }
        let threads = Set(infos.map(\.threadID)).sorted()
        let known = (try? ProcFile.numbers(in: "/proc/\(pid)/task")) ?? []
        return !threads.isEmpty && threads.allSatisfy(known.contains) ? threads : nil
    }
}
