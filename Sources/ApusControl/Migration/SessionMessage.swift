//  What the two agents of a migration say to each other on the control connection (the greeting that negotiates version
//  and features comes before, and is not here). Pages travel on lanes, never in these messages.
//
//     SOURCE AGENT                                                      DESTINATION AGENT
//        | open(offer) ------------------------------------------------->|  checks, starts QEMU with -incoming defer -S
//        |<----------------------------------------- ready | refused     |
//        |=================== pages, device state (lanes) ==============>|
//        |<------------------------ heartbeat, both ways --------------->|
//        |  * QEMU stopped: record `releasing`; stream at its end        |  QEMU says SHUT 0
//        |                                                               |  * record `prepared`: decides no more alone
//        |<----------------------------------------------- prepared      |
//        |   SHUT 0 to QEMU, QEMU `completed`                            |
//        |  * record `committed` = THE COMMIT POINT                      |
//        | commit ------------------------------------------------------>|  * record `committed`, cont, RESUME
//        |   (repeated until answered)                                   |  * record `completed`
//        |<----------------------------------------------- running       |
//        |   ends its QEMU, * record `completed`                         |
//
//     Any failure before the commit point:
//        |  * record `aborted`, QEMU's socket closed, QEMU resumes       |
//        | abort ------------------------------------------------------->|  discards its QEMU, * record `discarded`
//        |<----------------------------------------------- aborted       |
//        |<----------------------------------------------- failed        |  the destination's own failure, any time
//
//     After a lost connection, while the guest still runs; lanes are opened anew behind `resumed`:
//        | resume ------------------------------------------------------>|  comes to rest, counts what it has
//        |<--------------------------------------------- resumed(point)  |
//        |<----------------------------------------------- cutOff        |  asked until then: is the job still there?
//
//     When pages stay at the source (modes postcopy and hybrid), which are fetched on connections of their own:
//        |<------------------------------ running(with a pull token)     |  the guest runs, pages are missing
//        |=================== pages, until nothing is missing ==========>|
//        |<----------------------------------------------- running       |  * record `completed`
//        | sourceLost ------------------------------------------------->|  what is still missing is gone
//
//     After a lost connection, from a destination that is prepared and in doubt:
//        |<------------------------------------------ verdictQuery       |
//        | commit | abort | nothing yet -------------------------------->|
//
//     From a source that cannot tell by itself: its QEMU has died unobserved, maybe with its host and with its word:
//        | verdictQuery ------------------------------------------------>|
//        |<--------------- running | failed | nothing: as much in doubt  |
//
//  On the wire each message is one JSON object {"job": …, "kind": …, "body": …}, no larger than
//  `kind.encodedBytesMax`.

public import ApusFlow

/// Bounds of the control messages; a longer one is refused before it is parsed.
public enum SessionLimits {
    /// `open` carries a VM definition: a QEMU command line and its settings.
    public static let offerBytesMax = 1 << 20
    /// Every other message: a problem with its texts, or a handful of counters.
    public static let messageBytesMax = 1 << 16
    /// Job ids and VM names.
    public static let nameBytesMax = 255
    /// Entries in any string map of a message.
    public static let entryCountMax = 64
    /// Longest time to restore a lost connection: a destination keeps its copy so long.
    public static let reconnectSMax = 3600.0
}

/// A message and the job it belongs to. The runtime routes by job; a session never sees another job's message.
public struct SessionEnvelope: Sendable, Equatable {
    public var job: String
    public var message: SessionMessage

    public init(job: String, message: SessionMessage) {
        self.job = job
        self.message = message
    }
}

/// One control message between two agents.
public enum SessionMessage: Sendable, Equatable {
    /// Source: please make ready for this VM.
    case open(MigrationOffer)
    /// Destination: QEMU waits for its stream, lanes may connect.
    case ready(TransferTerms)
    /// Destination: not here, and why.
    case refused(SessionProblem)
    /// Destination: holds the whole VM, recorded it, and waits for the verdict.
    case prepared(PreparedReport)
    /// Source: the VM is yours. Repeated until answered by `running`.
    case commit
    /// Source: the VM stays here; discard your copy.
    case abort(SessionProblem)
    /// Destination: the VM runs here (or is paused here, as its operator left it).
    case running(ResumeReport)
    /// Destination: prepared, and without a verdict. Only a prepared destination asks.
    case verdictQuery
    /// Either: alive, and how far.
    case heartbeat(HeartbeatReport)
    /// Destination: something broke, and what that means for its copy of the VM.
    case failed(DestinationFailure)
    /// Destination: the copy is discarded.
    case aborted
    /// Source: the connection was lost; how far did you get? Only to a destination that has agreed to it in `ready`.
    case resume
    /// Destination: at rest, and this far.
    case resumed(ResumePoint)
    /// Destination: the connection was lost before everything was here. A source that has given up answers `abort`.
    case cutOff
    /// Source: the pages that are still missing are gone; the guest stands still where it touches one.
    case sourceLost(SessionProblem)

    /// The word for a message on the wire.
    public enum Kind: String, Codable, Sendable, CaseIterable {
        case open, ready, refused, prepared, commit, abort, running, verdictQuery, heartbeat, failed, aborted, resume,
            resumed, cutOff, sourceLost

        /// The longest encoding a receiver accepts.
        public var encodedBytesMax: Int {
            switch self {
            case .open: SessionLimits.offerBytesMax
            case .ready, .refused, .prepared, .commit, .abort, .running, .verdictQuery, .heartbeat, .failed, .aborted,
                .resume, .resumed, .cutOff, .sourceLost:
                SessionLimits.messageBytesMax
            }
        }
    }

    public var kind: Kind {
        switch self {
        case .open: .open
        case .ready: .ready
        case .refused: .refused
        case .prepared: .prepared
        case .commit: .commit
        case .abort: .abort
        case .running: .running
        case .verdictQuery: .verdictQuery
        case .heartbeat: .heartbeat
        case .failed: .failed
        case .aborted: .aborted
        case .resume: .resume
        case .resumed: .resumed
        case .cutOff: .cutOff
        case .sourceLost: .sourceLost
        }
    }
}

/// What the source asks the destination to make ready for.
public struct MigrationOffer: Codable, Sendable, Equatable {
    public var vm: String
    /// The VM's definition as JSON text; its form is the agents' business, not the protocol's.
    public var definition: String
    public var ramBytes: UInt64
    public var qemuVersion: String
    /// False: the operator had paused the guest, and it must be paused wherever it ends up.
    public var guestRunning: Bool
    public var options: [String: String]
    /// How long the source tries to restore a lost connection, in seconds; nil: it does not know how.
    public var reconnectS: Double?

    public init(
        vm: String, definition: String, ramBytes: UInt64, qemuVersion: String, guestRunning: Bool,
        options: [String: String] = [:], reconnectS: Double? = nil
    ) {
        self.vm = vm
        self.definition = definition
        self.ramBytes = ramBytes
        self.qemuVersion = qemuVersion
        self.guestRunning = guestRunning
        self.options = options
        self.reconnectS = reconnectS
    }

    /// Why a well-formed offer still makes no sense, or nil.
    public func invalid() -> String? {
        if vm.isEmpty { return "the VM has no name" }
        if vm.utf8.count > SessionLimits.nameBytesMax { return "the VM's name is too long" }
        if ramBytes == 0 { return "the VM has no memory" }
        if options.count > SessionLimits.entryCountMax { return "too many options" }
        if let reconnectS, !(0...SessionLimits.reconnectSMax).contains(reconnectS) {
            return "it would reconnect for \(reconnectS) s"
        }
        return nil
    }
}

/// What the destination agrees to of what the source has offered.
public struct TransferTerms: Codable, Sendable, Equatable {
    /// Guest RAM may come by the direct port: every block that the source owns is a shared file here.
    public var direct: Bool
    /// Why not, for the job's notes.
    public var reason: String?
    /// A lost connection does not end the job: `resume` will be answered. An agent that does not know it says nothing.
    public var resumes: Bool?
    /// Pages may be missing here when the guest begins to run; they will be fetched.
    public var pulls: Bool?
    /// Stream port: the RAM blocks of which pages may be missing, some of those offered; see ``DirectAccess/parse(offered:)``.
    public var pulledBlocks: String?
    /// Which content need not travel; nil: all of it must.
    public var content: ContentTerms?

    public init(direct: Bool = false, reason: String? = nil, resumes: Bool? = nil, pulls: Bool? = nil) {
        self.direct = direct
        self.reason = reason
        self.resumes = resumes
        self.pulls = pulls
    }
}

/// What the destination counted while it loaded the VM.
public struct PreparedReport: Codable, Sendable, Equatable {
    public var pagesInstalled: UInt64
    public var wireBytes: UInt64
    /// From the last page's arrival to QEMU's SHUT 0.
    public var loadMs: Double
    /// How RAM was installed: block name -> `mapped`, `process`, `stream`.
    public var installed: [String: String]
    /// How long the device state waited here for the last pages.
    public var fenceMs: Double?
    /// Pages that the source keeps until they are fetched; nil: none.
    public var missingPages: UInt64?

    public init(
        pagesInstalled: UInt64 = 0, wireBytes: UInt64 = 0, loadMs: Double = 0, installed: [String: String] = [:],
        fenceMs: Double? = nil, missingPages: UInt64? = nil
    ) {
        self.missingPages = missingPages
        self.pagesInstalled = pagesInstalled
        self.wireBytes = wireBytes
        self.loadMs = loadMs
        self.installed = installed
        self.fenceMs = fenceMs
    }
}

/// When the guest came to life at the destination.
public struct ResumeReport: Codable, Sendable, Equatable {
    /// From the verdict's arrival to QEMU's RESUME; nil when an agent restart lost the measure.
    public var resumeMs: Double?
    /// QEMU's own time stamp of RESUME, microseconds since the epoch, in the destination's clock.
    public var resumedAtUs: UInt64?
    /// True: the guest was paused before the migration and is paused still.
    public var isPaused: Bool
    /// Pages are missing: connections that bring them must name this. Nil: the VM is whole.
    public var pullToken: String?
    /// How missing pages came, so far; nil: none were missing.
    public var pull: PullCounts?

    public init(
        resumeMs: Double? = nil, resumedAtUs: UInt64? = nil, isPaused: Bool = false, pullToken: String? = nil,
        pull: PullCounts? = nil
    ) {
        self.pullToken = pullToken
        self.pull = pull
        self.resumeMs = resumeMs
        self.resumedAtUs = resumedAtUs
        self.isPaused = isPaused
    }

    public var isPulling: Bool { pullToken != nil }

    /// The same, once nothing is missing any more.
    func whole(_ counts: PullCounts?) -> ResumeReport {
        ResumeReport(resumeMs: resumeMs, resumedAtUs: resumedAtUs, isPaused: isPaused, pull: counts ?? pull)
    }
}

/// Totals since the job began, as the sender counts them.
public struct HeartbeatReport: Codable, Sendable, Equatable {
    public var pages: UInt64
    public var wireBytes: UInt64
    public var cpuS: Double
    /// Destination: pages are missing, and connections that bring them must name this. Loading devices, or `cont`, may wait
    /// for one of them, so it is said before the VM runs.
    public var pullToken: String?

    public init(pages: UInt64 = 0, wireBytes: UInt64 = 0, cpuS: Double = 0, pullToken: String? = nil) {
        self.pullToken = pullToken
        self.pages = pages
        self.wireBytes = wireBytes
        self.cpuS = cpuS
    }
}

/// A failure at the destination. What became of the copy decides what the source may do about it.
public struct DestinationFailure: Codable, Sendable, Equatable {
    public enum Copy: String, Codable, Sendable {
        /// The copy is gone and never ran: the source may keep the VM, if it has not committed.
        case neverRan
        /// The copy is gone and may have run after a commit: no older image may ever run again.
        case mayHaveRun
        /// The copy is committed, complete and paused; starting it failed and is tried again.
        case held
    }
    public var problem: SessionProblem
    public var copy: Copy

    public init(problem: SessionProblem, copy: Copy) {
        self.problem = problem
        self.copy = copy
    }
}

/// An error for people: what happened, and what to do.
public struct SessionProblem: Error, Codable, Sendable, Equatable {
    /// Stable, kebab-case.
    public var code: String
    public var message: String
    public var advice: String?

    public init(_ code: String, _ message: String, advice: String? = nil) {
        self.code = code
        self.message = message
        self.advice = advice
    }
}

extension SessionProblem {
    /// As people on this host must read it: "this host" of the message is another one.
    func told(by peer: String) -> SessionProblem {
        SessionProblem(code, "\(peer) says: \(message)", advice: advice.map { "On \(peer): \($0)" })
    }
}

extension SessionMessage {
    /// With the texts of its problem as people on this host must read them.
    func told(by peer: String) -> SessionMessage {
        switch self {
        case .refused(let problem): .refused(problem.told(by: peer))
        case .abort(let problem): .abort(problem.told(by: peer))
        case .failed(let failure): .failed(.init(problem: failure.problem.told(by: peer), copy: failure.copy))
        case .sourceLost(let problem): .sourceLost(problem.told(by: peer))
        case .open, .ready, .prepared, .commit, .running, .verdictQuery, .heartbeat, .aborted, .resume, .resumed,
            .cutOff:
            self
        }
    }
}

/// The phases a person sees. A job never returns to an earlier one, but `committing` and `inDoubt` alternate with the
/// connection.
public enum SessionPhase: String, Codable, Sendable, CaseIterable {
    case preparing, connecting, transferring, switching, committing, inDoubt, pulling, completed, failed, aborted

    public var isFinal: Bool {
        switch self {
        case .completed, .failed, .aborted: true
        case .preparing, .connecting, .transferring, .switching, .committing, .inDoubt, .pulling: false
        }
    }
}
