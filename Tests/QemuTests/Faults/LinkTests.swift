import ApusAPI
import ApusLab
import Foundation
import Testing

extension RealGuests {
    /// The network fails, at each moment of a migration.
    @Suite(.enabled(if: HostPair.canMakeNamespaces, "needs root")) struct LinkTests {
        /// Longer than a peer may be silent: both sides notice, and what is undecided is decided once the link is back.
        @Test(.timeLimit(.minutes(3))) func theLinkGoesDown() async throws {
            try await FaultStage.with { stage in
                for moment in FaultMoment.chosen {
                    try await fault("link down for 7 s", moment) {
                        let job = try await stage.begin(moment)
                        try await stage.pair.setLink(up: false)
                        try await ContinuousClock().sleep(for: .seconds(7))
                        try await stage.pair.setLink(up: true)
                        let moved = moment.isPastCommit || moment == .prepared
                        return try await stage.settle(job, moved ? .completed : .failed, moved: moved)
                    }
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
                        let moved = moment.isPastCommit || moment == .prepared
                        return try await stage.settle(job, moved ? .completed : .failed, moved: moved)
                    }
                }
            }
        }
    }
}
