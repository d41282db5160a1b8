import ApusQMP
internal import Foundation

/// What a guest will use, seen in a twin that goes ahead of it.
///
/// ```
///   guest   ── runs ──| stands still                                      |── runs on, does the same, and moves ──
///                     `── state ──▶ twin ── runs ──▶ what it uses ──▶ ended
///                                   0          ^ about where the guest will move
/// ```
/// A guest that works by its clock and by a generator of numbers in its memory does the same again, page by page.
struct Twin {
    /// For so long the guest will run on before it moves.
    static let headStartMs = 100
    /// And for so long pages are missing at most.
    static let spanMs = 2500

    /// Stops the guest, lets a twin go ahead, and has the guest go on.
    ///
    /// - Parameter monitor: of the guest's QEMU; its memory is a shared file.
    static func foresee(
        _ workload: Workload, monitor: String, qemu: String, image: GuestImage, accelerator: Accelerator, in lab: Lab
    ) async throws -> UseTrace {
        let qmp = try await QMPClient.connect(path: monitor)
        defer { Task { await qmp.close() } }
        let state = lab.path("twin.state")
        defer { try? FileManager.default.removeItem(atPath: state) }
        try await qmp.execute(.stop)
        try await qmp.execute(.migrateSetParameters(MigrateParameters(maxBandwidth: 0)))
        try await qmp.execute(.migrate(uri: "exec:cat > \(state)"))
        try await migrated(qmp, "the state of the guest")

        let folder = try lab.makeFolder("twin")
        var words = [qemu] + workload.arguments(run: folder, image: image, accelerator: accelerator)
        words += ["-S", "-incoming", "defer", "-qmp", "unix:\(folder)/qmp.sock,server=on,wait=off"]
        let process = try await lab.start("twin", words)
        let twin = try await wait(for: "QMP of the twin", seconds: 20) {
            try process.mustRun()
            return try? await QMPClient.connect(path: "\(folder)/qmp.sock")
        }
        try await twin.execute(.migrateIncoming(uri: "exec:cat \(state)"))
        try await migrated(twin, "the twin")
        let trace = try await UseTrace.watch(
            process.pid, workload, beforeMs: headStartMs, afterMs: spanMs, in: lab
        ) { try await twin.execute(.cont) }
        await twin.close()
        await process.stop()
        try await qmp.execute(.cont)
        return trace
    }

    private static func migrated(_ qmp: QMPClient, _ what: String) async throws {
        try await wait(for: what, seconds: 60) {
            let info = try await qmp.execute(.queryMigrate)
            if info.status == .failed {
                throw LabError.migrationFailed(peer: what, reason: info.errorDescription ?? "no reason given")
            }
            return info.status == .completed ? true : nil
        }
    }
}
