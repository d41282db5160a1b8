import ApusFlow
import ApusSystem
import Foundation
import Logging

/// Holds a session, once, just before one of its actions, so that a test can break something at exactly that moment.
///
/// `APUS_REHEARSE=source:record-committed=2000` holds the source's session for 2 s before it records its commit, and
/// leaves a file `rehearsal-source-record-committed` in the run directory when it gets there. Only tests set it; without
/// it nothing happens. `destination:settlePushed@400=2000` holds it the four hundredth time that it gets there.
struct Rehearsal: Sendable {
    private let role: String
    private let point: String
    private let ms: Double
    private let runDirectory: String
    /// How often it must still get there. It is held once in the agent's life: what is repeated until it is answered must not
    /// be held again and again.
    private let timesLeft: Monitor<Int>

    /// - Parameter environment: the agent's.
    init?(_ environment: [String: String] = ProcessInfo.processInfo.environment, runDirectory: String) {
        guard let text = environment["APUS_REHEARSE"] else { return nil }
        let parts = text.split(whereSeparator: { ":=".contains($0) }).map(String.init)
        guard parts.count == 3, let ms = Double(parts[2]) else { return nil }
        let (point, times) = (parts[1].prefix { $0 != "@" }, parts[1].drop { $0 != "@" }.dropFirst())
        role = parts[0]
        self.point = String(point)
        timesLeft = Monitor(Int(times) ?? 1)
        self.ms = ms
        self.runDirectory = runDirectory
    }

    func hold(_ role: String, before point: String) async {
        guard role == self.role, point == self.point else { return }
        let isDue = timesLeft.update { left in
            left -= 1
            return left == 0
        }
        guard isDue else { return }
        _ = FileManager.default.createFile(atPath: "\(runDirectory)/rehearsal-\(role)-\(point)", contents: nil)
        try? await Task.sleep(for: .milliseconds(ms))
    }

    /// The same for a step of a thread that may block.
    func hold(_ role: String, beforeStep point: String) { try? blocking { await hold(role, before: point) } }

    /// The same for the steps of a page's coming.
    func holdAtSteps(_ role: String) -> @Sendable (PullStep) -> Void { { hold(role, beforeStep: $0.next) } }
}

extension PullStep {
    /// What comes next, by its name in a rehearsal.
    var next: String {
        switch self {
        case .armed: "emptyMemory"
        case .filled: "settlePushed"
        case .settled: "wakePushed"
        }
    }
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
