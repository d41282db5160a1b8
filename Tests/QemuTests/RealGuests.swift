import ApusAPI
import ApusLab
import Testing

/// Tests with real guests, one at a time: two guests on two cores disturb each other's ticks and rounds.
@Suite(.serialized) enum RealGuests {}

extension Agent {
    /// The job, whatever became of it.
    func move(_ vm: String, to destination: Agent, _ options: [String]) async throws -> JobStatus {
        let text = try await apus(["migrate", vm, destination.endpoint, "--json"] + options, seconds: 90)
        let job = try #require(text.split(separator: "\n").last.map(String.init))
        return try (try? Agent.decode(JobStatus.self, job)) ?? Agent.decode(JobStatus.self, text)
    }

    /// Two full checks of its memory, here.
    func expectProof(of vm: String) async throws {
        let console = try await Console.connect(path: consolePath(of: vm))
        try await console.verdicts(2, seconds: 60)
        #expect(console.trace.wrong == [])
        await console.close()
    }
}
