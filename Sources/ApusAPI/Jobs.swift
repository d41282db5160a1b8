public import Foundation

/// What the operator asks for: move one running VM to another agent.
public struct MigrateRequest: Codable, Sendable, Equatable {
    /// Name of a VM that this agent runs.
    public var vm: String
    /// The destination agent's migration endpoint: a name from the config file's `hosts`, or `ADDRESS[:PORT]`.
    public var host: String
    /// The longest pause the operator accepts, in milliseconds.
    public var maxDowntimeMs: Int
    /// Upper bound for bytes put on the link, in MB/s (10^6 bytes); nil: as fast as the link goes.
    public var bandwidthMBps: Double?
    /// Give up, with the VM still on the source, when it has not been committed after this many seconds.
    public var timeoutS: Double?
    /// By then the VM is to run at the destination; what is needed for it, of what is allowed, is done in time. Else as
    /// with `timeoutS`.
    public var deadlineS: Double?
    /// What may be done about a VM that writes faster than its memory travels; nil: what the agent's configuration allows.
    public var allow: [MigrationMeans]?
    /// How the agent reaches the VM's memory; nil: `auto`.
    public var port: MemoryPort?
    /// What travels of a page that is sent again; nil: the agent's choice.
    public var mode: MigrationMode?
    /// Compare all memory by digest before the switch, and send again what differs; nil: no.
    public var verify: Bool?
    /// Move private RAM into a file first, with a pause of some milliseconds for each 256 MiB, so that the direct port can
    /// have it; nil: no.
    public var rebaseMemory: Bool?
    /// Pages whose content the destination can get elsewhere (on a shared disk, in what the VM left there) need not travel;
    /// nil: yes.
    public var references: Bool?

    public init(
        vm: String, host: String, maxDowntimeMs: Int = 300, bandwidthMBps: Double? = nil, timeoutS: Double? = nil,
        deadlineS: Double? = nil, allow: [MigrationMeans]? = nil, port: MemoryPort? = nil, mode: MigrationMode? = nil,
        verify: Bool? = nil, rebaseMemory: Bool? = nil, references: Bool? = nil
    ) {
        self.vm = vm
        self.host = host
        self.maxDowntimeMs = maxDowntimeMs
        self.bandwidthMBps = bandwidthMBps
        self.timeoutS = timeoutS
        self.deadlineS = deadlineS
        self.allow = allow
        self.port = port
        self.mode = mode
        self.verify = verify
        self.rebaseMemory = rebaseMemory
        self.references = references
    }
}

/// How an agent reaches the memory of a VM that it moves.
public enum MemoryPort: String, Codable, Sendable, CaseIterable {
    /// `direct` where VM and hosts allow it, else `stream`; the job's notes say why.
    case auto
    /// The agents own guest RAM: it is read, watched and installed without QEMU, which moves its device state only.
    case direct
    /// QEMU's own migration stream.
    case stream
}

/// What may be done about a VM that writes faster than its memory travels within the allowed pause; the mildest first.
public enum MigrationMeans: String, Codable, Sendable, CaseIterable {
    /// Its vCPUs stand still for a share of the time, as small as will do.
    case throttle
    /// It moves before the rest of its memory, which is fetched. Direct port only.
    case postcopy
}

/// What travels of a page that was sent before.
public enum MigrationMode: String, Codable, Sendable, CaseIterable {
    /// The whole page.
    case plain
    /// The lines that have changed, as long as that pays.
    case dsm
    /// As `dsm`, but the guest moves as soon as another pass over what it writes makes nothing less; the rest is fetched
    /// while it runs at the destination. Direct port only.
    case hybrid
    /// The guest moves as soon as it is recorded what it uses, and that is fetched while it runs at the destination. Direct
    /// port only.
    case postcopy
}

/// The phases a job passes, in this order; the last three are final.
public enum JobPhase: String, Codable, Sendable, CaseIterable {
    /// Checks on both hosts; the destination QEMU is started.
    case preparing
    /// Memory travels while the VM runs on the source.
    case transferring
    /// The VM is paused on the source; the last pages and the device state travel.
    case switching
    /// The destination holds the whole VM; ownership is being handed over.
    case committing
    /// Committed, but the destination has not confirmed that it runs the VM.
    case inDoubt
    /// The VM runs at the destination, which fetches the rest of its memory from the source.
    case pulling
    case completed
    /// Not committed: the VM runs on the source (or, for an incoming job, not here).
    case failed
    case aborted

    public var isFinal: Bool {
        switch self {
        case .completed, .failed, .aborted: true
        case .preparing, .transferring, .switching, .committing, .inDoubt, .pulling: false
        }
    }
}

public enum JobDirection: String, Codable, Sendable { case outgoing, incoming }

/// A sample of a running job. Byte counts are totals since the start.
public struct JobProgress: Codable, Sendable, Equatable {
    public var elapsedMs: Double = 0
    /// QEMU's dirty-bitmap rounds begun so far; 1 is the first pass over all memory.
    public var round: Int = 0
    public var memoryTotalBytes: UInt64 = 0
    public var memoryRemainingBytes: UInt64 = 0
    /// Bytes written to the link, framing included.
    public var wireBytes: UInt64 = 0
    public var rateBytesPerS: Double = 0
    public var dirtyRateBytesPerS: Double = 0
    /// Share of the work done, 0 to 1; never decreases within a job.
    public var fraction: Double = 0
    public var predictedRemainingMs: Double?
    public var predictedDowntimeMs: Double?
    public init() {}
}

/// Pages that travelled in one form.
public struct FormCount: Codable, Sendable, Equatable {
    /// `zero`, `raw`, `lz4`, `zstd`, `lines` (only what changed in the page), `same` (sent before, not changed), `disk` and
    /// `snapshot` (read by the destination on a disk, or in what the VM left there).
    public var form: String
    public var pages: UInt64
    public var wireBytes: UInt64
    public init(form: String, pages: UInt64, wireBytes: UInt64) {
        self.form = form
        self.pages = pages
        self.wireBytes = wireBytes
    }
}

/// One named part of the pause, in order.
public struct DowntimePart: Codable, Sendable, Equatable {
    public var name: String
    public var ms: Double
    public init(name: String, ms: Double) {
        self.name = name
        self.ms = ms
    }
}

/// What became of pages that were sent again (mode `dsm`).
public struct LineSummary: Codable, Sendable, Equatable {
    /// Bytes of a line.
    public var lineBytes: Int
    /// Pages that travelled as their changed lines, and how many these were.
    public var pages: UInt64
    public var changedLines: UInt64
    /// What they took on the link.
    public var wireBytes: UInt64
    /// Pages that had not changed, for which nothing travelled.
    public var samePages: UInt64
    /// Memory of the source agent for the hashes.
    public var tableBytes: UInt64

    public init(
        lineBytes: Int, pages: UInt64, changedLines: UInt64, wireBytes: UInt64, samePages: UInt64, tableBytes: UInt64
    ) {
        self.lineBytes = lineBytes
        self.pages = pages
        self.changedLines = changedLines
        self.wireBytes = wireBytes
        self.samePages = samePages
        self.tableBytes = tableBytes
    }

    /// Wire bytes per byte of the pages that were due.
    public var ratio: Double {
        let due = (pages + samePages) * 4096
        return due > 0 ? Double(wireBytes) / Double(due) : 0
    }
}

/// How the memory came that was fetched while the VM ran at the destination.
public struct PullSummary: Codable, Sendable, Equatable {
    /// Pages missing when the VM was handed over.
    public var missingPages: UInt64
    /// Of these, pages that came because the VM touched them, and pages that came by themselves.
    public var faultedPages: UInt64
    public var pushedPages: UInt64
    /// Touches of missing pages, and how long each waited, microseconds.
    public var faults: UInt64
    public var faultP50Us: Double
    public var faultP99Us: Double
    public var faultMaxUs: Double
    /// Sum of these waits, milliseconds: what vCPUs and devices stood still.
    public var stallMs: Double
    /// From the hand-over until nothing was missing; nil: an agent was restarted meanwhile.
    public var wholeMs: Double?
    /// Touches that waited for less than 2, 4, 8 … microseconds.
    public var faultHistogram: [UInt64]?
    /// Pages that came by themselves, in time, and were used until nothing was missing; nil: that cannot be told.
    public var usedPages: UInt64?
    /// Pages that were pushed because it was guessed that they would be used soon, and those of them that were meanwhile.
    public var foreseenPages: UInt64?
    public var foreseenUsedPages: UInt64?
    /// What decided the order of pages that came by themselves; of the outgoing job only.
    public var prefetch: PrefetchSummary?

    public init(
        missingPages: UInt64, faultedPages: UInt64, pushedPages: UInt64, faults: UInt64, faultP50Us: Double,
        faultP99Us: Double, faultMaxUs: Double, stallMs: Double, wholeMs: Double?
    ) {
        self.missingPages = missingPages
        self.faultedPages = faultedPages
        self.pushedPages = pushedPages
        self.faults = faults
        self.faultP50Us = faultP50Us
        self.faultP99Us = faultP99Us
        self.faultMaxUs = faultMaxUs
        self.stallMs = stallMs
        self.wholeMs = wholeMs
    }

    /// Of the pages that were missing at first and that the VM used meanwhile, the share that was there before it asked.
    public var coverage: Double? {
        usedPages.flatMap { $0 + faults > 0 ? Double($0) / Double($0 + faults) : nil }
    }
    /// Of the pages that were foreseen, the share that the VM used meanwhile.
    public var accuracy: Double? {
        guard let foreseenPages, let foreseenUsedPages, foreseenPages > 0 else { return nil }
        return Double(foreseenUsedPages) / Double(foreseenPages)
    }
}

/// How pages were foreseen that a VM would touch at the destination.
public struct PrefetchSummary: Codable, Sendable, Equatable {
    /// `migrate.prefetch`: `sweep`, `near`, `recorded`, `trend`, `given`.
    public var order: String
    /// Pages that came by themselves, by what brought them forward: near a touched page, on the way of touches, used
    /// before the move, nothing.
    public var nearPages: UInt64
    public var trendPages: UInt64
    public var recordedPages: UInt64
    public var restPages: UInt64
    /// Touched pages that were on their way already.
    public var lateFaults: UInt64
    /// Pages that the VM used while this was recorded before the move, and for how long it was, milliseconds.
    public var recordPages: UInt64
    public var recordMs: Double
    /// What the record cost: emptying page tables, once, and looking into them, milliseconds in all.
    public var zapMs: Double
    public var looksMs: Double

    /// What the record cost, as a share of the time that it took in all.
    public var recordingShare: Double {
        recordMs + zapMs > 0 ? (zapMs + looksMs) / (recordMs + zapMs) : 0
    }

    public init(
        order: String, nearPages: UInt64, trendPages: UInt64, recordedPages: UInt64, restPages: UInt64,
        lateFaults: UInt64, recordPages: UInt64, recordMs: Double, zapMs: Double, looksMs: Double
    ) {
        self.order = order
        self.nearPages = nearPages
        self.trendPages = trendPages
        self.recordedPages = recordedPages
        self.restPages = restPages
        self.lateFaults = lateFaults
        self.recordPages = recordPages
        self.recordMs = recordMs
        self.zapMs = zapMs
        self.looksMs = looksMs
    }
}

/// The record of a finished job.
public struct JobSummary: Codable, Sendable, Equatable {
    public var totalMs: Double = 0
    /// From the source QEMU's STOP to the destination QEMU's RESUME as the agents saw them.
    public var downtimeMs: Double?
    public var downtimeParts: [DowntimePart] = []
    /// What the source QEMU reports as `downtime`.
    public var qemuDowntimeMs: Double?
    public var predictedDowntimeMs: Double?
    /// The share of its speed that the VM was slowed down to, and how long its vCPUs were made to stand still for it.
    public var slowedTo: Double?
    public var slowedMs: Double?
    public var rounds: Int = 0
    /// How the source reached the VM's memory.
    public var port: MemoryPort?
    public var wireBytes: UInt64 = 0
    /// Of these, until the first pass over all memory was done.
    public var firstRoundBytes: UInt64?
    /// Pages held back when the guest was stopped, because it had written them in every round.
    public var hotPages: UInt64?
    /// Pages that were to be sent again and had changed in some lines only, or not at all.
    public var lines: LineSummary?
    /// Memory fetched after the hand-over (modes `hybrid` and `postcopy`).
    public var pull: PullSummary?
    /// Pages compared by digest before the switch (`verify`), and those of them that differed and were sent again.
    public var verifiedPages: UInt64?
    public var repairedPages: UInt64?
    /// How long the device state waited at the destination for the last pages, milliseconds.
    public var fenceMs: Double?
    public var forms: [FormCount] = []
    /// How RAM was installed at the destination: block name -> `mapped`, `process`, `stream`.
    public var installed: [String: String] = [:]
    /// CPU seconds the source and destination agents spent on this job.
    public var sourceCPUS: Double?
    public var destinationCPUS: Double?
    public init() {}
}

/// A way to migrate that the agent has chosen.
public struct ChosenWay: Codable, Sendable, Equatable {
    public var mode: MigrationMode
    /// nil: the best that can be had.
    public var port: MemoryPort?
    /// What it was chosen from. With `firstPass` it begins in mode `dsm`, and may still move before its memory if that is allowed.
    public var basis: ForecastRecord.Basis

    public init(mode: MigrationMode, port: MemoryPort? = nil, basis: ForecastRecord.Basis) {
        self.mode = mode
        self.port = port
        self.basis = basis
    }
}

public struct JobStatus: Codable, Sendable, Equatable {
    public var id: String
    public var direction: JobDirection
    public var vm: String
    public var peer: String
    public var phase: JobPhase
    public var startedAt: Date
    public var endedAt: Date?
    public var maxDowntimeMs: Int
    /// How the VM goes when nobody has said it; nil: somebody has, or it comes from another host.
    public var chosen: ChosenWay?
    public var progress: JobProgress
    public var summary: JobSummary?
    public var error: Problem?
    /// Decisions worth telling: what was tried, what was given up, why.
    public var notes: [String]

    public init(
        id: String, direction: JobDirection, vm: String, peer: String, phase: JobPhase, startedAt: Date,
        endedAt: Date? = nil, maxDowntimeMs: Int, progress: JobProgress = .init(), summary: JobSummary? = nil,
        error: Problem? = nil, notes: [String] = []
    ) {
        self.id = id
        self.direction = direction
        self.vm = vm
        self.peer = peer
        self.phase = phase
        self.startedAt = startedAt
        self.endedAt = endedAt
        self.maxDowntimeMs = maxDowntimeMs
        self.progress = progress
        self.summary = summary
        self.error = error
        self.notes = notes
    }
}
