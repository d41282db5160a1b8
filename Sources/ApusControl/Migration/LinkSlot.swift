import ApusAPI
import ApusFabric
import ApusSystem
import ApusWire

/// What reaches a session's serial loop, in order.
enum SessionInput<Event: Sendable>: Sendable {
    case event(Event)
    /// `dialled`: by this side.
    case linked(ControlLink, dialled: Bool)
    /// What was dialled does not answer.
    case unreachable(FabricError)
    case unlinked(ControlLink, FabricError?)
    case message(ControlLink, SessionMessage)
}

/// The control connections of one session: at most one is current; what comes from others is dropped.
///
/// ```
///   link's reader thread -- frame --> route -- stream, layout, return path --> flow (blocking)
///                                       `----- control -----> inbox -----> session's serial loop
/// ```
final class LinkRouter<Event: Sendable>: Sendable {
    let job: String
    private let inbox: AsyncStream<SessionInput<Event>>.Continuation
    typealias Flow = @Sendable (ControlLink.Message) -> Void
    /// Who takes frames that are not control messages.
    private enum Taker: Sendable {
        case nobody
        /// It runs in a moment, and may be answered before this side has heard that it does.
        case expected
        case flow(Flow)
    }
    private let taker = Monitor(Taker.nobody)

    init(job: String, inbox: AsyncStream<SessionInput<Event>>.Continuation) {
        self.job = job
        self.inbox = inbox
    }

    /// Nil when the flow is over: the router must not keep what the session has let go.
    func setFlow(_ take: Flow?) { taker.update { $0 = take.map(Taker.flow) ?? .nobody } }

    /// From now on frames wait, with all that is behind them, for ``setFlow(_:)``.
    func expectFlow() { taker.update { $0 = .expected } }

    private func takesFrames() -> Flow? {
        taker.wait { taker in
            switch taker {
            case .nobody: .some(nil)
            case .expected: nil
            case .flow(let take): .some(take)
            }
        } ?? nil
    }

    /// A frame of any of the session's links, on that link's reader thread.
    func receive(_ link: ControlLink, _ frame: ControlLink.Message) {
        switch frame.kind {
        case .control:
            do throws(Problem) {
                let envelope = try SessionEnvelope(frame.bytes)
                guard envelope.job == job else {
                    throw Problem("peer-message", "A message for job \(envelope.job) came on the link of \(job).")
                }
                inbox.yield(.message(link, envelope.message))
            } catch { link.cut() }
        case .stream, .layout, .returnPath, .held:
            // Before the flow runs nobody has asked for these.
            guard let take = takesFrames() else { return link.cut() }
            take(frame)
        case .hello, .welcome, .refusal, .batch, .fence, .credit, .want, .end, .handOver, .squeezedStream, .update,
            .patchable, .audit, .residence, .wanted, .reference, .referenceAnswer:
            link.cut()
        }
    }

    func closed(_ link: ControlLink, _ error: FabricError?) { inbox.yield(.unlinked(link, error)) }

    /// Dials a peer on a thread; `linked` or `unreachable` follows.
    func dial(_ endpoint: Endpoint) {
        let started = try? WorkerThread("apus-dial") { [self] in
            do throws(FabricError) {
                let connection = try Connection.dial(
                    endpoint, Hello(role: .control), timeoutMs: SessionTimes.dialMs)
                let link: ControlLink
                do throws(SystemError) {
                    link = try ControlLink(
                        connection, received: { [self] in receive($0, $1) }, closed: { [self] in closed($0, $1) })
                } catch { throw .system(error) }
                guard case .enqueued = inbox.yield(.linked(link, dialled: true)) else { return link.cut() }
            } catch { inbox.yield(.unreachable(error)) }
        }
        if started == nil { inbox.yield(.unreachable(.timedOut)) }
    }
}

/// The one link that a session uses, and who dialled it.
///
/// After a loss both sides dial, and their connections may cross. If each took the newest, each could cut the one that the
/// other has just taken, again and again. The source's own wins, unless nothing has been heard on it of late.
struct LinkSlot {
    private(set) var link: ControlLink?
    private var isSources: Bool

    init(_ link: ControlLink? = nil) {
        self.link = link
        isSources = true
    }

    enum Outcome { case taken(lost: Bool), declined }

    mutating func offer(_ new: ControlLink, bySource: Bool) -> Outcome {
        let former = link
        if new.isClosed { return .declined }
        if let former, !former.isClosed, isSources, !bySource,
            Instant.now().ms(since: former.lastHeard) < SessionTimes.crossingMs
        {
            new.cut()
            return .declined
        }
        former?.cut()
        link = new
        isSources = bySource
        return .taken(lost: former != nil)
    }

    /// True when it was the one in use.
    mutating func drop(_ old: ControlLink) -> Bool {
        guard old === link else { return false }
        link = nil
        return true
    }
}
