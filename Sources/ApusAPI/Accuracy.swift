public import Foundation

/// What was, or will be, of a migration.
public struct MigrationCost: Codable, Sendable, Equatable {
    public var totalMs: Double
    public var wireBytes: Double
    public var downtimeMs: Double
    public init(totalMs: Double, wireBytes: Double, downtimeMs: Double) {
        self.totalMs = totalMs
        self.wireBytes = wireBytes
        self.downtimeMs = downtimeMs
    }
}

/// A migration that was made, beside what was foretold of it.
public struct ForecastRecord: Codable, Sendable, Equatable {
    /// What the forecast at the start rested on.
    public enum Basis: String, Codable, Sendable, CaseIterable {
        /// `apus plan`, a short time before.
        case plan
        /// Earlier migrations of this VM.
        case history
        /// The first data that travelled.
        case firstPass
    }

    public var job: String
    public var vm: String
    public var host: String
    public var endedAt: Date
    public var port: MemoryPort?
    public var basis: Basis?
    public var atStart: MigrationCost?
    /// When the VM was about to be stopped.
    public var atGate: MigrationCost?
    public var actual: MigrationCost

    public init(
        job: String, vm: String, host: String, endedAt: Date, port: MemoryPort?, basis: Basis?, atStart: MigrationCost?,
        atGate: MigrationCost?, actual: MigrationCost
    ) {
        self.job = job
        self.vm = vm
        self.host = host
        self.endedAt = endedAt
        self.port = port
        self.basis = basis
        self.atStart = atStart
        self.atGate = atGate
        self.actual = actual
    }
}

/// How near forecasts came: the difference as a share of what then was.
public struct ForecastErrors: Codable, Sendable, Equatable {
    public struct Spread: Codable, Sendable, Equatable {
        public var median: Double
        public var p90: Double
        public init(median: Double, p90: Double) {
            self.median = median
            self.p90 = p90
        }
    }
    public var migrations: Int
    public var totalMs: Spread
    public var wireBytes: Spread
    public var downtimeMs: Spread

    /// nil: none was foretold.
    public init?(_ pairs: [(foretold: MigrationCost, actual: MigrationCost)]) {
        guard !pairs.isEmpty else { return nil }
        func spread(_ value: (MigrationCost) -> Double) -> Spread {
            let errors = pairs.map { abs(value($0.foretold) - value($0.actual)) / max(value($0.actual), 1e-9) }.sorted()
            func quantile(_ share: Double) -> Double {
                let at = share * Double(errors.count - 1)
                let (low, high) = (errors[Int(at)], errors[min(Int(at) + 1, errors.count - 1)])
                return low + (high - low) * (at - at.rounded(.down))
            }
            return Spread(median: quantile(0.5), p90: quantile(0.9))
        }
        migrations = pairs.count
        totalMs = spread(\.totalMs)
        wireBytes = spread(\.wireBytes)
        downtimeMs = spread(\.downtimeMs)
    }
}

/// `apus plan --accuracy`: the record of this agent's forecasts.
public struct AccuracyReport: Codable, Sendable, Equatable {
    /// Forecasts at the start, and when the VM was about to be stopped; nil: there were none.
    public var atStart: ForecastErrors?
    public var atGate: ForecastErrors?
    /// Newest first; the errors are over all that are kept, these are the latest.
    public var latest: [ForecastRecord]

    public static let latestMax = 50

    /// - Parameter records: newest first.
    public init(_ records: [ForecastRecord]) {
        func errors(_ foretold: (ForecastRecord) -> MigrationCost?) -> ForecastErrors? {
            ForecastErrors(records.compactMap { record in foretold(record).map { ($0, record.actual) } })
        }
        atStart = errors(\.atStart)
        atGate = errors(\.atGate)
        latest = Array(records.prefix(Self.latestMax))
    }
}
