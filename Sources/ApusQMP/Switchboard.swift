import Foundation
import NIOCore
import Synchronization

/// Who waits for what on one connection. The event loop delivers, callers register; all under one lock, never held
/// across a resume.
final class Switchboard: Sendable {
    typealias Waiter = CheckedContinuation<Data, any Error>

    private struct Pending {
        let command: String
        let waiter: Waiter
        var deadline: Scheduled<Void>?
    }

    private struct State {
        var pending: [String: Pending] = [:]
        var subscribers: [UInt64: AsyncStream<QMPEvent>.Continuation] = [:]
        var nextNumber: UInt64 = 0
        /// The greeting when it came before anybody asked for it.
        var greeting: Data?
        var ended: QMPError?
        var eventsDropped: UInt64 = 0
    }

    private let state = Mutex(State())

    /// The id under which the greeting is waited for; commands have numbers.
    static let greetingID = "greeting"

    var eventsDropped: UInt64 { state.withLock { $0.eventsDropped } }
    var ended: QMPError? { state.withLock { $0.ended } }

    func newID() -> String {
        state.withLock { state in
            state.nextNumber += 1
            return String(state.nextNumber)
        }
    }

    /// Waits for the line that answers `id`. `send` runs once the waiter is registered.
    ///
    /// - Throws: `QMPError`, or `CancellationError` when the task is cancelled.
    func line(
        answering id: String, command: String, timeout: Duration, on loop: any EventLoop, send: () -> Void
    ) async throws -> Data {
        let ms = timeout.milliseconds
        return try await withTaskCancellationHandler {
            try await withCheckedThrowingContinuation { waiter in
                guard register(id, Pending(command: command, waiter: waiter)) else { return }
                // Scheduled only now: a deadline that fires before there is a waiter would be lost.
                let deadline = loop.scheduleTask(in: .milliseconds(Int64(ms))) {
                    self.finish(id, .failure(QMPError.timedOut(command: command, ms: ms)))
                }
                attach(deadline, to: id)
                send()
                // Cancellation may have come before there was a waiter to cancel.
                if Task.isCancelled { finish(id, .failure(CancellationError())) }
            }
        } onCancel: {
            finish(id, .failure(CancellationError()))
        }
    }

    /// False: the waiter was answered at once and nothing must be sent.
    private func register(_ id: String, _ pending: Pending) -> Bool {
        let answer: Result<Data, any Error>? = state.withLock { state in
            if let ended = state.ended { return .failure(ended) }
            if id == Self.greetingID, let greeting = state.greeting { return .success(greeting) }
            guard state.pending.count < QMPLimits.commandsPendingMax else {
                return .failure(QMPError.tooManyPending(limit: QMPLimits.commandsPendingMax))
            }
            state.pending[id] = pending
            return nil
        }
        guard let answer else { return true }
        pending.waiter.resume(with: answer)
        return false
    }

    private func attach(_ deadline: Scheduled<Void>, to id: String) {
        let waits = state.withLock { state in
            state.pending[id]?.deadline = deadline
            return state.pending[id] != nil
        }
        if !waits { deadline.cancel() }
    }

    private func finish(_ id: String, _ result: Result<Data, any Error>) {
        guard let pending = state.withLock({ $0.pending.removeValue(forKey: id) }) else { return }
        pending.deadline?.cancel()
        pending.waiter.resume(with: result)
    }

    func received(_ line: Data) throws(QMPError) {
        switch try Message(line) {
        case .greeting:
            state.withLock { $0.greeting = line }
            finish(Self.greetingID, .success(line))
        case .reply(let id):
            // No waiter: it timed out or was cancelled, and this is its late reply.
            finish(id, .success(line))
        case .refusal(let id, let errorClass, let text):
            // QEMU leaves the id out only when it could not read what we wrote.
            guard let id else { throw .malformed(what: "QEMU could not read a command: \(text)") }
            let command = state.withLock { $0.pending[id]?.command } ?? ""
            finish(id, .failure(QMPError.refused(command: command, class: errorClass, description: text)))
        case .event(let name, let data, let microseconds):
            deliver(
                QMPEvent(
                    kind: .init(name: name, data: data), qemuMicroseconds: microseconds, arrived: .now, data: data))
        }
    }

    private func deliver(_ event: QMPEvent) {
        let subscribers = state.withLock { Array($0.subscribers.values) }
        var dropped: UInt64 = 0
        for subscriber in subscribers {
            if case .dropped = subscriber.yield(event) { dropped += 1 }
        }
        if dropped > 0 { state.withLock { $0.eventsDropped += dropped } }
    }

    /// Ends everything once; later calls change nothing.
    func end(_ error: QMPError) {
        let (pending, subscribers) = state.withLock { state in
            defer {
                state.pending = [:]
                state.subscribers = [:]
            }
            if state.ended == nil { state.ended = error }
            return (Array(state.pending.values), Array(state.subscribers.values))
        }
        for one in pending {
            one.deadline?.cancel()
            one.waiter.resume(throwing: error)
        }
        for subscriber in subscribers { subscriber.finish() }
    }

    func subscribe(buffering limit: Int) -> AsyncStream<QMPEvent> {
        let (stream, continuation) = AsyncStream.makeStream(of: QMPEvent.self, bufferingPolicy: .bufferingNewest(limit))
        let number: UInt64? = state.withLock { state in
            guard state.ended == nil else { return nil }
            state.nextNumber += 1
            state.subscribers[state.nextNumber] = continuation
            return state.nextNumber
        }
        guard let number else {
            continuation.finish()
            return stream
        }
        continuation.onTermination = { [weak self] _ in
            _ = self?.state.withLock { $0.subscribers.removeValue(forKey: number) }
        }
        return stream
    }
}

extension Duration {
    /// Whole milliseconds, at least 1.
    var milliseconds: Int {
        let (seconds, attoseconds) = components
        return max(1, Int(seconds) * 1000 + Int(attoseconds / 1_000_000_000_000_000))
    }
}
