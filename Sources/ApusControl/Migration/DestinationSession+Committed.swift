//  The destination's half once the commit point is passed: the VM is ours.
//
//     [committed] starting --guestRunning-----------------------------> [completed]
//                     |                                                      ^
//                     `------guestRunning, pages missing--> [pulling] -------+  becameWhole: nothing is missing, and the
//                                                              |                userfaultfd is out of QEMU
//                                                              `-- QEMU killed --> [lost]
//
//  While pulling, a lost connection or a dead agent makes the guest wait where it touches a missing page, and nothing else.

extension DestinationSession {
    mutating func starting(_ event: DestinationEvent) -> [DestinationAction] {
        switch event {
        case .qemuObserved(.dead): return lose(mayHaveRun: true)
        case .guestRunning(let report): return pulls && report.isPulling ? pull(report) : complete(report)
        case .qemuObserved(.running) where !pulls: return complete(ResumeReport())
        case .qemuObserved, .retryDue: return [.startGuest(paused: !guestRunning)]
        case .qemuDied: return lose(mayHaveRun: true)
        case .guestStartFailed(let problem):
            return [.note(problem), .send(.failed(.init(problem: problem, copy: .held)))]
        case .recordFailed(.committed, let text):
            state = .deciding
            return [.note(SessionFailure.recordFailed(text).problem)]
        // Only after an operator's verdict can the source say this; it runs, or will run, the guest too.
        case .received(.abort): return [.note(.abortAfterCommit)]
        case .received(.commit), .received(.verdictQuery), .received(.heartbeat): return []
        case .userAborted, .resolve: return [.note(.tooLate)]
        case .received(.open), .received(.ready), .received(.refused), .received(.prepared), .received(.running),
            .received(.failed), .received(.aborted), .received(.resume), .received(.resumed),
            .received(.sourceLost),
            .received(.cutOff):
            return [.note(.ignoredNonsense)]
        case .connected, .connectionLost, .peerSilent, .reconnectTimedOut, .becameWhole, .sourceSilent, .localFailed:
            return []
        case .restarted, .qemuReady, .loaded, .recordFailed(.incoming, _), .recordFailed(.prepared, _),
            .recordFailed(.pulling, _), .recordFailed(.completed, _), .recordFailed(.discarded, _),
            .recordFailed(.lost, _):
            illegal(event)
        }
    }

    /// It runs; the rest of it comes while it does.
    private mutating func pull(_ report: ResumeReport) -> [DestinationAction] {
        state = .pulling(report)
        return [.record(record(.pulling(report))), .send(.running(report))]
    }

    mutating func pulling(_ report: ResumeReport, _ event: DestinationEvent) -> [DestinationAction] {
        switch event {
        case .becameWhole(let counts): return complete(report.whole(counts))
        case .received(.commit), .received(.verdictQuery): return [.send(.running(report))]
        case .connected:
            isSourceAway = false
            return [.send(.running(report))]
        // Said again and again: it is what makes the source give pages.
        case .retryDue: return [.connect, .send(.running(report)), .observeQemu]
        case .qemuDied, .qemuObserved(.dead): return lose(mayHaveRun: true)
        case .received(.sourceLost(let problem)), .sourceSilent(let problem):
            isSourceAway = true
            return [.note(problem)]
        case .localFailed(let problem): return [.note(problem)]
        // Without these pages it is no VM any more. Only a person may say so, and only when nobody can give them.
        case .resolve(commit: false) where isSourceAway:
            state = .lost(mayHaveRun: true)
            return [.discardQemu, .record(record(.lost(mayHaveRun: true))), .send(lossReport(true)), .finish]
        case .recordFailed(.pulling, let text):
            return [.note(SessionFailure.recordFailed(text).problem), .send(.running(report))]
        // Only after an operator's verdict can the source say this; it runs, or will run, the guest too.
        case .received(.abort): return [.note(.abortAfterCommit)]
        case .userAborted, .resolve: return [.note(.tooLate)]
        case .received(.open), .received(.ready), .received(.refused), .received(.prepared), .received(.running),
            .received(.heartbeat), .received(.failed), .received(.aborted), .received(.resume), .received(.resumed),
            .received(.cutOff):
            return []
        case .connectionLost, .peerSilent, .reconnectTimedOut, .qemuObserved, .guestRunning, .guestStartFailed:
            return []
        case .restarted, .qemuReady, .loaded, .recordFailed: illegal(event)
        }
    }

    mutating func complete(_ finished: ResumeReport) -> [DestinationAction] {
        pulls = false
        let report = finished.whole(nil)
        state = .completed(report)
        return [.record(record(.completed(report))), .send(.running(report)), .finish]
    }

    func ended(_ event: DestinationEvent) -> [DestinationAction] {
        switch event {
        case .received(.commit):
            switch state {
            case .completed(let report): return [.send(.running(report))]
            case .lost(let mayHaveRun): return [.send(lossReport(mayHaveRun))]
            case .discarded: return [.send(.aborted)]
            case .idle, .preparing, .receiving, .cutOff, .inDoubt, .deciding, .starting, .pulling, .recovering:
                illegal(event)
            }
        case .received(.resume):
            // The time had run out, or something else went wrong meanwhile.
            guard case .discarded(let failure) = state else { return [] }
            return [.send(.failed(.init(problem: failure.problem, copy: .neverRan)))]
        // A source that has lost its word, or never gave it.
        case .received(.verdictQuery):
            switch state {
            case .completed(let report): return [.send(.running(report))]
            case .lost(let mayHaveRun): return [.send(lossReport(mayHaveRun))]
            case .discarded(let failure): return [.send(.failed(.init(problem: failure.problem, copy: .neverRan)))]
            default: illegal(event)
            }
        case .received(.abort):
            if case .completed = state { return [.note(.abortAfterCommit)] }
            return [.send(.aborted)]
        // The source may not have heard.
        case .connected:
            if case .lost(let mayHaveRun) = state { return [.send(lossReport(mayHaveRun))] }
            return []
        case .recordFailed(.completed(let report), _): return [.send(.running(report)), .finish]
        case .recordFailed(.discarded(let failure), _):
            return [.send(.failed(.init(problem: failure.problem, copy: .neverRan))), .finish]
        case .recordFailed(.lost(let mayHaveRun), _): return [.connect, .send(lossReport(mayHaveRun)), .finish]
        case .userAborted, .resolve: return [.note(.tooLate)]
        case .received(.open), .received(.ready), .received(.refused), .received(.prepared), .received(.running),
            .received(.heartbeat), .received(.failed), .received(.aborted), .received(.resumed), .received(.sourceLost),
            .received(.cutOff):
            return []
        // Trailing reports of a QEMU that this session no longer cares for.
        case .qemuReady, .localFailed, .loaded, .qemuDied, .guestRunning, .guestStartFailed, .qemuObserved,
            .connectionLost, .peerSilent, .retryDue, .reconnectTimedOut, .becameWhole, .sourceSilent:
            return []
        case .restarted, .recordFailed(.incoming, _), .recordFailed(.prepared, _), .recordFailed(.committed, _),
            .recordFailed(.pulling, _):
            illegal(event)
        }
    }
}
