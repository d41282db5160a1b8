import ApusAPI
import ApusFabric
import ApusFlow
import ApusQMP
import ApusSystem
import Logging

//  What both runtimes do about a connection that is lost while the guest runs. One loss takes everything: a lane that
//  breaks takes the control connection with it, so that both sides see the same thing, and all of it is made anew.
//
//     SOURCE                                                        DESTINATION
//     hold: lanes park, QEMU waits for them                         lanes park when their connection ends
//     dial, resume ------------------------------------------------>| all at rest; lanes expected anew
//        <------------------------------------------ resumed(point) |
//     lanes dialled, each told how much of its own has arrived      each goes on with the decoder it has

/// How long a connection has been away.
struct Outage: Sendable {
    private(set) var ms = 0.0
    private(set) var count = 0
    private var countedAt: Instant?
    /// What the lanes had sent when the last connection was lost.
    private var sentBytes: UInt64 = 0

    mutating func begin(sentBytes: UInt64) {
        self.sentBytes = sentBytes
        countedAt = Instant.now()
    }

    /// Adds the time since the last call while away.
    mutating func tick() {
        let now = Instant.now()
        ms += countedAt.map { now.ms(since: $0) } ?? 0
        countedAt = now
    }

    mutating func end() {
        tick()
        countedAt = nil
        count += 1
    }

    /// A connection that only comes and goes gains no time: the clock goes back to zero when something new is confirmed.
    mutating func progressed(settledBytes: UInt64) {
        if countedAt == nil && settledBytes > sentBytes { ms = 0 }
    }
}

extension OutgoingMigration {
    var isReconnecting: Bool { if case .reconnecting = session.state { true } else { false } }

    /// A lane is broken; the rest of its connections follow.
    func loseLink(_ what: String) async {
        let lost = link
        logger.info("\(what) broke", metadata: ["job": "\(job)"])
        try? await Task.sleep(for: SessionTimes.lastWords)
        lost?.cut()
    }

    func holdTransfer() {
        guard let transfer else { return post(.reconnectTimedOut) }
        let sample = transfer.flow.sample()
        outage.begin(sentBytes: sample.settledBytes + sample.unconfirmedBytes)
        transfer.hold()
        logger.warning("connection lost, reconnecting", metadata: ["job": "\(job)", "peer": "\(request.host)"])
    }

    func resumeTransfer(_ point: ResumePoint) async {
        guard let transfer, let link else { return }
        let (peer, token, count) = (peer, token, laneCount)
        do {
            let lanes = try await offPool("apus-dial") { try OutgoingTransfer.dialLanes(peer, token, count) }
            transfer.brake?.goOn()
            try transfer.flow.resume(at: point, control: link, lanes: lanes)
            outage.end()
            noteOutages()
            post(.transferResumed)
        } catch let failure as FlowFailure {
            post(.localFailed(SessionProblem(failure)))
        } catch {
            // Lanes that cannot be opened are a lost connection.
            link.cut()
        }
    }

    /// One note, however often.
    private func noteOutages() {
        let start = "The connection to \(request.host) was lost"
        status.notes.removeAll { $0.hasPrefix(start) }
        let times = outage.count == 1 ? "once" : "\(outage.count) times"
        status.notes.append("\(start) and restored \(times); only what was on its way was sent again.")
    }

    /// Looked at every beat.
    func watchOutage() {
        guard isReconnecting else { return outage.progressed(settledBytes: transfer?.flow.sample().settledBytes ?? 0) }
        outage.tick()
        if outage.ms > services.config.link.reconnectS * 1000 { post(.reconnectTimedOut) }
    }
}

extension IncomingMigration {
    /// A lane is broken; the rest of its connections follow.
    func loseLink(_ what: String) async {
        let lost = link
        logger.info("\(what) broke", metadata: ["job": "\(job)"])
        try? await Task.sleep(for: SessionTimes.lastWords)
        lost?.cut()
    }

    /// Lets the flow use the present connection.
    func connect(_ flow: DestinationFlow, as connection: Int) {
        let link = self.link
        returnPath.update { $0 = link }
        router.setFlow { frame in flow.receive(frame, on: connection) }
    }

    func resumeTransfer() async {
        guard let flow, let token else { return }
        do {
            let rest = try await offPool("apus-rest") { try flow.rest() }
            outage = Outage()
            connect(flow, as: rest.connection)
            services.lanes.expectAnew(token)
            link?.post(SessionEnvelope(job: job, message: .resumed(rest.point)).frame)
        } catch let failure as FlowFailure {
            post(.localFailed(SessionProblem(failure)))
        } catch {
            post(.localFailed(SessionProblem("resume", error)))
        }
    }

    /// Looked at every beat.
    func watchOutage() {
        guard session.state == .cutOff else { return }
        outage.tick()
        if outage.ms > (reconnectS + SessionTimes.reconnectMarginS) * 1000 { post(.reconnectTimedOut) }
    }
}
