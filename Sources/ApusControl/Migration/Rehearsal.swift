import ApusSystem
import Foundation
import Logging

/// Holds a session, once, just before one of its actions, so that a test can break something at exactly that moment.
///
/// `APUS_REHEARSE=source:record-committed=2000` holds the source's session for 2 s before it records its commit, and
/// leaves a file `rehearsal-source-record-committed` in the run directory when it gets there. Only tests set it; without
/// it nothing happens.
struct Rehearsal: Sendable {
    private let role: String
    private let point: String
    private let ms: Double
    private let runDirectory: String
    /// Once in the agent's life: what is repeated until it is answered must not be held again and again.
    private let isSpent = Monitor(false)

    /// - Parameter environment: the agent's.
    init?(_ environment: [String: String] = ProcessInfo.processInfo.environment, runDirectory: String) {
        guard let text = environment["APUS_REHEARSE"] else { return nil }
        let parts = text.split(whereSeparator: { ":=".contains($0) }).map(String.init)
        guard parts.count == 3, let ms = Double(parts[2]) else { return nil }
        role = parts[0]
        point = parts[1]
        self.ms = ms
        self.runDirectory = runDirectory
    }

    func hold(_ role: String, before point: String) async {
        guard role == self.role, point == self.point else { return }
        let isFirst = isSpent.update { spent in
            defer { spent = true }
            return !spent
        }
        guard isFirst else { return }
        _ = FileManager.default.createFile(atPath: "\(runDirectory)/rehearsal-\(role)-\(point)", contents: nil)
        try? await Task.sleep(for: .milliseconds(ms))
    }

    /// The same for a step of a thread that may block.
    func hold(_ role: String, beforeStep point: String) { try? blocking { await hold(role, before: point) } }
}

extension SourceAction {
    /// Its name in a rehearsal.
    var point: String {
        switch self {
        case .record(let record): "record-\(record.stage.name)"
        case .connect: "connect"
        case .send(let message): "send-\(message.kind.rawValue)"
        case .startTransfer: "startTransfer"
        case .holdTransfer: "holdTransfer"
        case .resumeTransfer: "resumeTransfer"
        case .serve: "serve"
        case .holdService: "holdService"
        case .raiseDowntimeLimit: "raiseDowntimeLimit"
        case .deliverShut: "deliverShut"
        case .releaseQemu: "releaseQemu"
        case .observeQemu: "observeQemu"
        case .resumeGuest: "resumeGuest"
        case .endQemu: "endQemu"
        case .note: "note"
        case .finish: "finish"
        }
    }
}

extension DestinationAction {
    /// Its name in a rehearsal.
    var point: String {
        switch self {
        case .record(let record): "record-\(record.stage.name)"
        case .prepareQemu: "prepareQemu"
        case .connect: "connect"
        case .send(let message): "send-\(message.kind.rawValue)"
        case .resumeTransfer: "resumeTransfer"
        case .resumePull: "resumePull"
        case .startGuest: "startGuest"
        case .observeQemu: "observeQemu"
        case .discardQemu: "discardQemu"
        case .note: "note"
        case .finish: "finish"
        }
    }
}

extension SourceStage {
    var name: String {
        switch self {
        case .started: "started"
        case .releasing: "releasing"
        case .committed: "committed"
        case .serving: "serving"
        case .aborted: "aborted"
        case .completed: "completed"
        case .kept: "kept"
        case .lost: "lost"
        }
    }
}

extension DestinationStage {
    var name: String {
        switch self {
        case .incoming: "incoming"
        case .prepared: "prepared"
        case .committed: "committed"
        case .pulling: "pulling"
        case .completed: "completed"
        case .discarded: "discarded"
        case .lost: "lost"
        }
    }
}
