import ApusAPI
import ApusLab
import Foundation
import Testing

extension RealGuests {
    /// The network fails, at each moment of a migration.
    @Suite(.enabled(if: HostPair.canMakeNamespaces, "needs root")) struct LinkTests {
        /// Longer than a peer may be silent: both sides notice. While the guest runs they go on where they were; what is
        /// undecided later is decided once the link is back.
        @Test(.timeLimit(.minutes(3))) func theLinkGoesDown() async throws {
            try await FaultStage.with { stage in
                for moment in FaultMoment.chosen {
                    try await fault("link down for 7 s", moment) {
                        let job = try await stage.begin(moment)
                        try await stage.pair.setLink(up: false)
                        try await ContinuousClock().sleep(for: .seconds(7))
                        try await stage.pair.setLink(up: true)
                        return try await stage.outlive(job, moment, wasHeld: moment == .setup)
                    }
                }
            }
        }

        /// Longer than they try: the VM stays, and the other host keeps nothing of it.
        @Test(.timeLimit(.minutes(3))) func theLinkStaysDown() async throws {
            try await FaultStage.with(reconnectS: 6) { stage in
                try await fault("link down for good", FaultMoment.firstRound) {
                    let job = try await stage.begin(.firstRound)
                    try await stage.pair.setLink(up: false)
                    let ended = try await stage.source.end(of: job.id, seconds: 30)
                    #expect(ended.phase == .failed, "\(FaultStage.told(ended))")
                    FaultStage.expectsWords(ended.error, code: "connection-lost")
                    try await stage.expectOneGuest()
                    try await stage.pair.setLink(up: true)
                    return ended
                }
            }
        }

        /// Shorter than that: nobody gives up, TCP goes on.
        @Test(.timeLimit(.minutes(2))) func aShortGapIsOutlived() async throws {
            try await FaultStage.with { stage in
                try await fault("link down for 2 s", FaultMoment.firstRound) {
                    try await stage.rehearse()
                    let job = try await stage.migrate(maxDowntimeMs: FaultStage.converging)
                    try await stage.source.job(of: FaultStage.vm, seconds: 20) { $0.progress.wireBytes > 1 << 20 }
                    try await stage.pair.setLink(up: false)
                    try await ContinuousClock().sleep(for: .seconds(2))
                    try await stage.pair.setLink(up: true)
                    return try await stage.settle(job, .completed, moved: true)
                }
            }
        }

        @Test(.timeLimit(.minutes(3))) func theConnectionsAreReset() async throws {
            try await FaultStage.with { stage in
                for moment in FaultMoment.chosen {
                    try await fault("connection reset", moment) {
                        let job = try await stage.begin(moment)
                        try await stage.pair.resetConnections(of: stage.pair.source)
                        return try await stage.outlive(job, moment)
                    }
                }
            }
        }

        /// Again and again: each time only what was on its way travels twice.
        @Test(.timeLimit(.minutes(2)), arguments: [ApusPeer.Port.direct, .stream])
        func theConnectionsAreResetAgainAndAgain(port: ApusPeer.Port) async throws {
            try await FaultStage.with(port: port) { stage in
                try await fault("five resets, \(port.rawValue) port", FaultMoment.firstRound) {
                    try await stage.rehearse()
                    let calm = try await stage.settle(
                        try await stage.migrate(maxDowntimeMs: FaultStage.converging), .completed,
                        moved: true)
                    let job = try await stage.migrate(maxDowntimeMs: FaultStage.converging)
                    for times in 1...5 {
                        try await stage.source.job(of: FaultStage.vm, seconds: 20) {
                            $0.phase.isFinal || $0.progress.wireBytes > UInt64(times) << 22
                        }
                        try await stage.pair.resetConnections(of: stage.pair.source)
                        let words = times == 1 ? "once" : "\(times) times"
                        try await stage.source.job(of: FaultStage.vm, seconds: 20) { now in
                            now.phase.isFinal || now.notes.contains { $0.contains("restored \(words)") }
                        }
                    }
                    let ended = try await stage.settle(job, .completed, moved: true, seconds: 40)
                    #expect(ended.notes.contains { $0.contains("restored 5 times") }, "\(FaultStage.told(ended))")
                    #expect(ended.summary?.port?.rawValue == port.rawValue, "\(FaultStage.told(ended))")
                    let once = try #require(calm.summary?.firstRoundBytes)
                    let broken = try #require(ended.summary?.firstRoundBytes)
                    print("fault | five resets | bytes of round 1: \(broken), undisturbed \(once)")
                    #expect(broken < once + once / 2)
                    return ended
                }
            }
        }
    }
}
