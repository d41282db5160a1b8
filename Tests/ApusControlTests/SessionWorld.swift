//  A world for the two session machines: two agents with durable records, two modelled QEMUs and one link, single
//  threaded and replayed exactly by its seed. Everything that can happen is one atomic `Move`; an agent performs one
//  action of a list per move, so a kill falls between any two.
//
//     agent A [inbox, todo, record]  <--- toA ---+--- toB --->  agent B [inbox, todo, record]
//          |                                                        |
//     source QEMU: active -> waiting -> answered -> handedOver    destination QEMU: incoming -> loading ->
//                     \-> failing -> running again                      loaded -> running
//
//  `version` counts what the guest did; a copy is as old as the version it was stopped at. Running an older copy is as
//  bad as running two, because the disks are newer than it.

import ApusControl
import ApusFlow
import ApusMemory

/// SplitMix64.
struct Seed: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }
    mutating func chance(_ percent: UInt64) -> Bool { next() % 100 < percent }
    mutating func below(_ bound: Int) -> Int { Int(next() % UInt64(bound)) }
}

/// What goes wrong, and what people and clocks do.
enum Fault: CaseIterable {
    case killAgentA, killAgentB, dropLink, partition, killSource, killDestination, powerLossA, hostAGone, hostBGone
    case abortByUser, abortAtDestination, deadline, silentToA, silentToB, switchTimeout, localFailureA
    case recordFailsA, recordFailsB, sourceRefusesShut, loadFails, prepareFails, startFails
    case reconnectLimitA, reconnectLimitB
}

/// A deliberate mistake; the checker must find it, or it proves nothing.
enum Sabotage: CaseIterable {
    case none
    case destinationRunsWhenPrepared, destinationForgetsPrepared, destinationDiscardsOnLostLink
    case sourceForgetsRecord, commitSentBeforeRecord, shutBeforeRecord, handedOverIsResumed, undecidableCommits
    case lostFramesStayLost, destinationOverstates, flowGoesOnUnheld
    case releasingIsNotOnDisk
    case sourceEndsBeforeWhole, destinationCompletesBeforeWhole, pagerLeavesBeforeWhole
}

enum SourceQemuModel: Equatable {
    case idle, active, waiting, answered, failing, handedOver, ended, killed
}

enum DestinationQemuModel: Equatable {
    case none, incoming
    case loading(Int)
    case loaded(Int)
    case running, gone, killed
}

struct Violation: Error { var text: String }

struct World {
    static let job = "job-1"
    let offer: MigrationOffer
    let sabotage: Sabotage
    var seed: Seed
    var trace: [String]?

    // Agent A.
    var a: SourceSession?
    var aRecord: SourceRecord?
    /// What is on disk, and not in the kernel's hands only.
    var aRecordOnDisk: SourceRecord?
    var aSyncIsDue = false
    var aInbox: [SourceEvent] = []
    var aTodo: [SourceAction] = []
    var aAlive = true
    // Agent B.
    var b: DestinationSession?
    var bRecord: DestinationRecord?
    var bInbox: [DestinationEvent] = []
    var bTodo: [DestinationAction] = []
    var bAlive = true
    // The QEMUs.
    var source = SourceQemuModel.idle
    var guestRuns: Bool
    var limitRaised = false
    var version = 0
    var destination = DestinationQemuModel.none
    // The link.
    enum Parcel {
        case message(SessionMessage)
        /// One frame of pages, by its number.
        case frame(UInt64)
        /// Device state, behind all frames up to this one.
        case streamEnd(version: Int, frames: UInt64)
        /// A page that was missing.
        case page(PageNumber)
    }
    var linkAllowed = true
    var linkUp = false
    /// Counts the connections made.
    var connection = 0
    var toB: [Parcel] = []
    var toA: [SessionMessage] = []
    var flow = FlowModel()
    var pull: PullModel
    // Armed one-shot faults.
    var armed: Set<Fault> = []
    // What the checker remembers.
    var aEverCommitted = false
    var aEverReleasing = false
    var bHeardCommit = false
    var aEverUndecidable = false
    var aHeardLoss = false
    var sourceKilled = false
    /// Killed with its guest stopped for good as far as it knew, and A knowing that B holds the VM.
    var killedAfterPrepared = false
    var destinationKilled = false
    var hostAGone = false
    var hostBGone = false
    var bHeardAbort = false
    var operatorDecided = false
    /// A phase that could not be written down may be forgotten by a successor.
    var aRecordFailed = false
    var bRecordFailed = false
    var aPhase = SessionPhase.preparing
    var bPhase = SessionPhase.preparing
    var marks: Set<String> = []
    var collectsMarks = false

    init(
        seed: UInt64, guestRunning: Bool = true, resumes: Bool = true, pulls: Bool = false, sabotage: Sabotage = .none,
        tracing: Bool = false
    ) {
        self.seed = Seed(state: seed)
        self.sabotage = sabotage
        guestRuns = guestRunning
        pull = PullModel(isWanted: pulls && guestRunning)
        offer = MigrationOffer(
            vm: "vm", definition: "{}", ramBytes: 1 << 29, qemuVersion: "7.2.22", guestRunning: guestRunning,
            reconnectS: resumes ? 30 : nil)
        trace = tracing ? [] : nil
        a = SourceSession(job: World.job, guestRunning: guestRunning)
        aInbox = [.start(offer)]
    }

    var sourceRuns: Bool {
        switch source {
        case .idle, .active: guestRuns
        case .waiting, .answered, .failing, .handedOver, .ended, .killed: false
        }
    }

    mutating func log(_ text: String) {
        trace?.append(text.replacing("ApusControl.", with: ""))
    }
}
