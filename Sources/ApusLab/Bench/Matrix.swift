/// A comparison: every workload on every link by every peer, several times.
public struct Matrix: Sendable {
    public var workloads: [Workload]
    /// Bits per second; nil: unshaped.
    public var rates: [UInt64?]
    public var peers: [Peer]
    public var runs: Int
    /// What every link adds to the time of a round trip.
    public var rttMs = 0.0

    public init(workloads: [Workload], rates: [UInt64?], peers: [Peer], runs: Int) {
        self.workloads = workloads
        self.rates = rates
        self.peers = peers
        self.runs = runs
    }

    public struct Cell: Sendable {
        public let workload: Workload
        public let rate: UInt64?
        public let peer: Peer
        public let run: Int
    }

    /// Runs outermost and peers innermost: what disturbs the machine for a while disturbs all peers, not one. The peers
    /// begin at another one in each run, so that none is always the first after a change of workload.
    public var cells: [Cell] {
        var cells: [Cell] = []
        for run in 1...max(1, runs) {
            for workload in workloads {
                for rate in rates {
                    for turn in peers.indices {
                        let peer = peers[(turn + run - 1) % peers.count]
                        cells.append(Cell(workload: workload, rate: rate, peer: peer, run: run))
                    }
                }
            }
        }
        return cells
    }

    /// - Parameter progress: told each outcome as it comes.
    public func measure(
        image: GuestImage, accelerator: Accelerator,
        progress: (Cell, Outcome, _ index: Int, _ total: Int) throws -> Void
    ) async throws {
        let cells = cells
        for (index, cell) in cells.enumerated() {
            var outcome = try await cell.peer.migrate(
                cell.workload, rate: cell.rate, rttMs: rttMs, image: image, accelerator: accelerator)
            outcome.run = cell.run
            try progress(cell, outcome, index + 1, cells.count)
        }
    }
}

/// `1 Gb/s`, `100 Mb/s`, `unshaped`
public func rateName(_ rate: UInt64?) -> String {
    guard let rate else { return "unshaped" }
    if rate >= 1_000_000_000 { return "\(brief(Double(rate) / 1e9).trimmingZeros()) Gb/s" }
    return "\(brief(Double(rate) / 1e6).trimmingZeros()) Mb/s"
}

/// `1 Gb/s, RTT 5 ms`
public func linkName(_ rate: UInt64?, rttMs: Double?) -> String {
    rateName(rate) + (rttMs.map { ", RTT \(brief($0).trimmingZeros()) ms" } ?? "")
}

/// `1G`, `100M`, `none`
public func rate(named text: String) -> UInt64?? {
    if text == "none" || text == "unshaped" { return .some(nil) }
    let scale: Double
    switch text.last {
    case "G": scale = 1e9
    case "M": scale = 1e6
    default: return nil
    }
    guard let number = Double(text.dropLast()), number > 0 else { return nil }
    return .some(UInt64(number * scale))
}

extension String {
    func trimmingZeros() -> String {
        guard contains(".") else { return self }
        var text = self
        while text.last == "0" { text.removeLast() }
        if text.last == "." { text.removeLast() }
        return text
    }
}
