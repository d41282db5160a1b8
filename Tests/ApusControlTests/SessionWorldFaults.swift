//  What can go wrong in a session world, and how its agents start anew.

import ApusControl
import ApusFlow

extension World {
    mutating func inject(_ fault: Fault) throws {
        if trace != nil { log("!! \(fault)") }
        switch fault {
        case .killAgentA: killA()
        case .killAgentB: killB()
        case .dropLink: dropLink()
        case .partition:
            linkAllowed = false
            dropLink()
        case .killSource: killSource()
        case .killDestination: killDestination()
        case .powerLossA: powerLossA()
        case .hostAGone:
            hostAGone = true
            killA()
            killSource()
        case .hostBGone:
            hostBGone = true
            killB()
            killDestination()
        case .abortByUser: tellA(.userAborted)
        case .abortAtDestination: tellB(.userAborted)
        case .deadline: tellA(.deadlinePassed)
        case .silentToA: if a?.state != .idle { tellA(.peerSilent) }
        case .silentToB: tellB(.peerSilent)
        case .switchTimeout: if a?.phase == .switching { tellA(.switchOverTimedOut) }
        case .localFailureA: tellA(.localFailed(.init("stream-unknown", "QEMU's stream has an unknown section.")))
        case .reconnectLimitA: if case .reconnecting? = a?.state { tellA(.reconnectTimedOut) }
        case .reconnectLimitB: if b?.state == .cutOff { tellB(.reconnectTimedOut) }
        case .recordFailsA, .recordFailsB, .sourceRefusesShut, .loadFails, .prepareFails, .startFails:
            armed.insert(fault)
        }
        try check()
    }

    mutating func killA() {
        guard aAlive else { return }
        aAlive = false
        a = nil
        aHeardLoss = false
        pull.isHeldByA = false
        pull.service = 0
        aInbox = []
        aTodo = []
        aSyncIsDue = false
        dropLink()
        // QEMU reads what was written before the close; SHUT 0, once delivered, counts.
        if source == .active || source == .waiting { source = .failing }
    }

    mutating func killB() {
        guard bAlive else { return }
        bAlive = false
        b = nil
        pull.isWatchedByB = false
        bInbox = []
        bTodo = []
        dropLink()
        if destination == .incoming { destination = .gone }
    }

    mutating func killSource() {
        guard source != .ended, source != .killed else { return }
        switch source {
        case .waiting, .answered, .handedOver: if aEverReleasing { killedAfterPrepared = true }
        case .idle, .active, .failing, .ended, .killed: break
        }
        source = .killed
        sourceKilled = true
        // An agent whose QMP connection had a gap cannot vouch for what came before the death.
        tellA(.qemuDied(watched: !seed.chance(10)))
    }

    /// The host comes back. What was not on disk may or may not be there.
    mutating func powerLossA() {
        guard aAlive else { return }
        killA()
        killSource()
        if seed.chance(50) {
            aRecord = aRecordOnDisk
            // A word that nobody has heard was not given.
            if aRecord?.stage == .releasing { aEverCommitted = aEverCommitted && bHeardCommit }
            // Its phase may go back.
            aRecordFailed = true
        } else {
            aRecordOnDisk = aRecord
        }
    }

    mutating func killDestination() {
        switch destination {
        case .none, .gone, .killed: return
        case .incoming, .loading, .loaded, .running: break
        }
        destination = .killed
        destinationKilled = true
        tellB(.qemuDied)
    }

    mutating func dropLink() {
        guard linkUp else { return }
        linkUp = false
        toA = []
        toB = []
        tellA(.connectionLost)
        tellB(.connectionLost)
    }

    mutating func restartA() {
        guard !aAlive, !hostAGone else { return }
        if trace != nil { log("!! restart A, record \(String(describing: aRecord?.stage))") }
        aAlive = true
        if sabotage == .sourceForgetsRecord { aRecord = nil }
        guard let row = aRecord else { return }
        a = SourceSession(restoring: row)
        switch row.stage {
        case .started, .releasing, .committed, .serving, .aborted: aInbox = [.restarted]
        case .completed, .kept, .lost: aInbox = []
        }
    }

    mutating func restartB() {
        guard !bAlive, !hostBGone else { return }
        if trace != nil { log("!! restart B, record \(String(describing: bRecord?.stage))") }
        bAlive = true
        guard let row = bRecord else { return }
        b = DestinationSession(restoring: row)
        switch row.stage {
        case .incoming, .prepared, .committed, .pulling: bInbox = [.restarted]
        case .completed, .discarded, .lost: bInbox = []
        }
    }
}
