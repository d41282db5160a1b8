//  What must hold in a session world: at every step, and when everything that can heal has healed.

import ApusControl

extension World {
    /// Holds at every step.
    func check() throws {
        if sourceRuns, destination == .running { throw Violation(text: "both QEMUs run the guest") }
        if aEverCommitted, sourceRuns { throw Violation(text: "the source runs after the commit point") }
        if aEverCommitted, source == .idle {
            throw Violation(text: "the source took the VM back after the commit point")
        }
        try checkPull()
    }

    /// People never see a job go back.
    static func advance(_ seen: inout SessionPhase, to phase: SessionPhase) throws {
        func rank(_ phase: SessionPhase) -> Int {
            switch phase {
            case .preparing: 0
            case .connecting: 1
            case .transferring: 2
            case .switching: 3
            case .committing, .inDoubt: 4
            case .pulling: 5
            case .completed, .failed, .aborted: 6
            }
        }
        if rank(phase) < rank(seen) { throw Violation(text: "phase \(phase) after \(seen)") }
        seen = phase
    }

    /// Holds when everything that can heal has healed and come to rest.
    func checkEnd() throws {
        let sourceHolds = source == .idle || source == .handedOver
        let destinationHolds: Bool
        switch destination {
        case .loaded, .running: destinationHolds = true
        case .incoming, .loading: throw Violation(text: "a half-loaded destination is left over")
        case .none, .gone, .killed: destinationHolds = false
        }
        if hostAGone || hostBGone { return try checkEndAlone(destinationHolds) }

        if let a, !a.phase.isFinal { throw Violation(text: "the source is stuck in \(a.state.name)") }
        if let b, !b.phase.isFinal, !(b.phase == .pulling && pagesAreGone) {
            throw Violation(text: "the destination is stuck in \(b.state.name)")
        }
        switch finalStage {
        case .completed:
            guard case .completed = b?.state else { throw Violation(text: "completed, but not at the destination") }
            if sourceHolds { throw Violation(text: "a completed source left its QEMU behind") }
            if !destinationHolds, !destinationKilled { throw Violation(text: "completed, and nobody has the VM") }
            if offer.guestRunning, destinationHolds, destination != .running {
                throw Violation(text: "completed, and the guest does not run")
            }
        case .kept:
            if destinationHolds { throw Violation(text: "kept at the source, and a destination is left over") }
            if offer.guestRunning, !sourceRuns, !sourceKilled {
                throw Violation(text: "kept, and the guest does not run")
            }
        case .lost(_, wasCommitted: true):
            guard (destinationKilled && !destinationHolds) || pagesAreGone else {
                throw Violation(text: "called lost, and it is not")
            }
        case .lost(_, wasCommitted: false):
            guard sourceKilled, !destinationHolds else { throw Violation(text: "called lost, and it is not") }
        case nil:
            if destinationHolds { throw Violation(text: "no migration, and a destination is left over") }
        case .started, .releasing, .committed, .serving, .aborted:
            throw Violation(text: "the source's record is not final")
        }
        if !sourceKilled, !destinationKilled, sourceHolds == destinationHolds {
            throw Violation(text: "nobody was killed; source holds \(sourceHolds), destination \(destinationHolds)")
        }
        // A destination's death before the commit point leaves the VM on the source.
        if !sourceKilled, !aEverCommitted, !sourceHolds { throw Violation(text: "lost without a kill of its QEMU") }
        // A source's death after `prepared` leaves it on the destination.
        if !destinationKilled, killedAfterPrepared, !destinationHolds, !aEverUndecidable {
            throw Violation(text: "lost although the destination held it")
        }
    }

    /// What A concluded. A last record that could not be written is written by the next successor.
    private var finalStage: SourceStage? {
        switch a?.state {
        case .completed: .completed
        case .kept(let failure): .kept(failure)
        case .lost(let failure, let wasCommitted): .lost(failure, wasCommitted: wasCommitted)
        case nil, .idle, .connecting, .opening, .transferring, .reconnecting, .switching, .orphaned, .releasing,
            .deciding,
            .undecidable, .committed, .serving, .aborting, .recovering:
            aRecord?.stage
        }
    }

    /// One host never comes back.
    private func checkEndAlone(_ destinationHolds: Bool) throws {
        if hostAGone, !hostBGone {
            if let b, !b.phase.isFinal, !(b.phase == .pulling && pagesAreGone) {
                throw Violation(text: "the destination is stuck in \(b.state.name)")
            }
            if aEverCommitted, !destinationKilled, !destinationHolds {
                throw Violation(text: "the source's host died after the commit point and took the VM along")
            }
        }
        if hostBGone, !hostAGone {
            if !aEverCommitted, !sourceKilled, source != .idle, aRecord?.stage != .releasing {
                throw Violation(text: "the destination's host died before the commit point and took the VM along")
            }
            if case .committed? = a?.state, source != .handedOver, !sourceKilled {
                throw Violation(text: "an unanswered commit, and the last copy is gone")
            }
        }
    }
}
