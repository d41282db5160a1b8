import ApusAPI
import ApusFabric
import ApusFlow
import ApusSystem
import ApusWire
import Foundation
import Logging

/// What every session's runtime shares.
struct SessionServices: Sendable {
    let machines: Machines
    let store: Store
    let config: AgentConfig
    let board: JobBoard
    let content: ContentDesk
    let logger: Logger
    /// Port that other agents can dial this one at.
    let linkPort: UInt16
    let lanes: LaneRegistry
    let rehearsal: Rehearsal?
    let plans: RecentPlans

    /// One step of a session, for the log. Of the event its beginning: an offer holds its job's secret further on.
    func trace(_ job: String, _ event: @autoclosure () -> String, _ state: String, _ actions: [String]) {
        logger.debug(
            "session",
            metadata: [
                "job": "\(job)", "event": "\(event().prefix(80))", "state": "\(state)", "actions": "\(actions)",
            ])
    }
}

enum SessionTimes {
    /// Heartbeats go out, watchdogs look, retries fall due.
    static let beat: Duration = .milliseconds(500)
    /// QEMU is asked for its counters, the gate looks, progress is published.
    static let sample: Duration = .milliseconds(25)
    /// A peer not heard of for so long is silent.
    static let silenceMs = 5_000.0
    /// A lane whose bytes nobody confirms for so long is stalled.
    static let stallMs = 10_000.0
    /// A stopped guest that the destination does not hold after so long runs on at the source.
    static func switchOverMs(maxDowntimeMs: Int) -> Double { max(5_000, 10 * Double(maxDowntimeMs)) }
    /// A connection that has not said by then whose it is is cut.
    static let claim: Duration = .seconds(5)
    /// A link on which something was heard so lately is in use.
    static let crossingMs = 2_000.0
    /// Time to reach a peer.
    static let dialMs = 3_000.0
    /// A lane that breaks when the other agent gives up: its own words may be on their way on the control connection.
    static let lastWords: Duration = .milliseconds(300)
    /// A destination waits longer than its source by this: the loss may have been noticed here first.
    static let reconnectMarginS = 5.0
}

/// Runs blocking work on a thread of its own and waits for it without holding a thread of the cooperative pool.
func offPool<R: Sendable>(_ name: String, _ body: @escaping @Sendable () throws -> R) async throws -> R {
    try await withCheckedThrowingContinuation { continuation in
        do {
            _ = try WorkerThread(name) { continuation.resume(with: Result { try body() }) }
        } catch {
            continuation.resume(throwing: error)
        }
    }
}

/// Waits on a thread, never on the cooperative pool, for asynchronous work.
func blocking<R: Sendable>(_ body: @escaping @Sendable () async throws -> R) throws -> R {
    let done = Monitor<Result<R, any Error>?>(nil)
    Task {
        let result: Result<R, any Error>
        do { result = .success(try await body()) } catch { result = .failure(error) }
        done.update { $0 = result }
    }
    guard let result = done.wait({ $0 }) else { preconditionFailure("a wait without limit ends with a result") }
    return try result.get()
}

/// Which jobs expect lanes. Asked from the threads that shake hands.
final class LaneRegistry: Sendable {
    private struct Expected: Sendable {
        var lanes: Int
        var attached: Set<UInt16> = []
        var attach: @Sendable (consuming Connection) -> Void
    }
    private let expected = Monitor<[Token: Expected]>([:])
    private let pulls = Monitor<[Token: @Sendable (consuming Connection) -> Void]>([:])

    func expect(_ token: Token, lanes: Int, attach: @escaping @Sendable (consuming Connection) -> Void) {
        expected.update { $0[token] = Expected(lanes: lanes, attach: attach) }
    }

    /// The same lanes again, on new connections.
    func expectAnew(_ token: Token) { expected.update { $0[token]?.attached = [] } }

    /// Connections for missing pages, any number of them one after the other.
    func expectPull(_ token: Token, attach: @escaping @Sendable (consuming Connection) -> Void) {
        pulls.update { $0[token] = attach }
    }
    func forgetPull(_ token: Token) { pulls.update { $0[token] = nil } }

    func forget(_ token: Token) { expected.update { $0[token] = nil } }

    /// Why this lane is not welcome; nil: it is, and its place is taken.
    func refusal(of hello: Hello) -> Refusal? {
        if hello.role == .urgent {
            guard pulls.read({ $0[hello.token] != nil }) else {
                return Refusal(.unknownJob, "No migration with this token lacks pages.")
            }
            return hello.lane <= PullServer.pushLane ? nil : Refusal(.badLane, "Lane \(hello.lane) is not expected.")
        }
        return expected.update { jobs in
            guard var job = jobs[hello.token] else {
                return Refusal(.unknownJob, "No migration with this token is waiting for lanes.")
            }
            guard hello.role == .lane, Int(hello.lane) < job.lanes, Int(hello.lanes) == job.lanes,
                job.attached.insert(hello.lane).inserted
            else { return Refusal(.badLane, "Lane \(hello.lane) of \(hello.lanes) is not expected.") }
            jobs[hello.token] = job
            return nil
        }
    }

    func attach(_ connection: consuming Connection) {
        let token = connection.hello.token
        if connection.hello.role == .urgent { return pulls.read({ $0[token] })?(connection) ?? () }
        expected.read({ $0[token]?.attach })?(connection)
    }
}

extension Token {
    var text: String { String(high, radix: 16) + "." + String(low, radix: 16) }

    init?(text: String) {
        let parts = text.split(separator: ".")
        guard parts.count == 2, let high = UInt64(parts[0], radix: 16), let low = UInt64(parts[1], radix: 16) else {
            return nil
        }
        self.init(high: high, low: low)
    }
}

extension SessionEnvelope {
    /// The frame that carries this message. Its texts are our own and short, but for an offer's definition, whose length
    /// is checked before.
    var frame: ControlLink.Message { .init(.control, Array((try? JSONEncoder().encode(self)) ?? Data())) }

    /// - Throws: `Problem` when the peer sent something else.
    init(_ bytes: [UInt8]) throws(Problem) {
        do {
            self = try JSONDecoder().decode(SessionEnvelope.self, from: Data(bytes))
        } catch {
            throw Problem("peer-message", "The peer sent a control message that cannot be read: \(error).")
        }
    }
}

extension Problem {
    init(_ problem: SessionProblem) { self.init(problem.code, problem.message, advice: problem.advice) }
}

extension SessionProblem {
    init(_ problem: Problem) { self.init(problem.code, problem.message, advice: problem.advice) }

    /// Why an agent cannot be reached.
    ///
    /// - Parameter name: what the operator called it.
    init(_ error: FabricError, dialling peer: Endpoint, as name: String) {
        let there = name == peer.description ? name : "\(name) (\(peer))"
        switch error {
        case .system(let error) where error.call == "getaddrinfo":
            self.init(
                "host-unknown",
                "\(name) is no known host: it is neither in the agent's configuration nor a name that resolves.",
                advice: "Give ADDRESS[:PORT], or name it under hosts in the configuration file of this agent.")
        case .refused(let refusal) where refusal.code == .version:
            self.init(
                "peer-version", "The agent at \(there) refuses this agent's version: \(refusal.text)",
                advice: "Install the same release of Apus on both hosts.")
        case .frame(.version):
            self.init(
                "peer-version", "The agent at \(there) has another version. \(error)",
                advice: "Install the same release of Apus on both hosts.")
        case .frame:
            self.init(
                "peer-strange", "What listens at \(there) is not an Apus agent. \(error)",
                advice: "Give the address of the agent's migration link (link.listen in its configuration).")
        case .system, .refused, .closed, .timedOut, .auditFailed, .unreadable:
            self.init(
                "peer-unreachable", "The agent at \(there) cannot be reached: \(error)",
                advice: "Check that `apus agent` runs there, listens on this address, and no firewall is between.")
        }
    }

    /// A flow's end, with what to do about it.
    ///
    /// - Parameter words: what QEMU said to it.
    init(_ failure: FlowFailure, words: String = "") {
        let advice =
            switch failure.code {
            case "link": "Check the network and that the other agent runs, then migrate again."
            case "qemu-load": "Both hosts need a QEMU that can be this machine, with the same devices and files."
            case "install": "Look at the destination's memory and its agent's log, then migrate again."
            case "resume": "Nothing is lost but time: the VM runs on here. Migrate again."
            case "peer": "Install the same release of Apus on both hosts."
            default: "Look at QEMU's log and the agent's."
            }
        self.init(
            failure.code, words.isEmpty ? failure.description : "\(failure.description) QEMU said: \(words)",
            advice: advice)
    }

    /// Any error, for people.
    init(_ code: String, _ error: any Error, advice: String? = nil) {
        if let problem = error as? Problem {
            self.init(problem)
        } else {
            self.init(code, "\(error)", advice: advice)
        }
    }
}

extension JobPhase {
    init(_ phase: SessionPhase) {
        self =
            switch phase {
            case .preparing, .connecting: .preparing
            case .transferring: .transferring
            case .switching: .switching
            case .committing: .committing
            case .inDoubt: .inDoubt
            case .pulling: .pulling
            case .completed: .completed
            case .failed: .failed
            case .aborted: .aborted
            }
    }
}
