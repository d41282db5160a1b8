//  Ways to run a session world: a random walk, a fixed march with faults at chosen steps, and the healing at the end.

import ApusControl

extension World {
    /// The operator knows the truth; the machines only ask for it.
    mutating func operatorResolves() {
        let fresh =
            switch destination {
            case .loaded(let loadedVersion): loadedVersion == version
            case .running: true
            case .none, .incoming, .loading, .gone, .killed: false
            }
        if a?.state == .undecidable { tellA(.resolve(commit: fresh)) }
        if hostAGone, b?.state == .inDoubt(linked: false) {
            operatorDecided = true
            tellB(.resolve(commit: fresh))
        }
    }

    /// Repairs everything, then lets it run fairly until it rests.
    mutating func heal() throws {
        linkAllowed = true
        restartA()
        restartB()
        for round in 0..<60 {
            var isIdle = true
            for move in Move.allCases {
                while isEnabled(move) {
                    switch move {
                    case .retryA, .retryB:
                        try perform(move)
                    case .agentA, .agentB, .deliverToB, .deliverToA, .source, .destination, .gate, .push:
                        isIdle = false
                        try perform(move)
                    }
                    if move == .source { break }
                }
            }
            operatorResolves()
            if round > 10, a?.phase == .switching { tellA(.switchOverTimedOut) }
            // Its source gave up meanwhile, or is gone.
            if round > 20, b?.state == .cutOff { tellB(.reconnectTimedOut) }
            if round > 40, aAlive, a?.phase.isFinal == false { tellA(.deadlinePassed) }
            let aRests = !aAlive || a?.phase.isFinal != false
            let bRests = !bAlive || b?.phase.isFinal != false
            if isIdle, aRests, bRests { break }
            // Nobody is left to answer the other.
            if hostBGone, a?.state == .committed(linked: false) || a?.state == .serving, round > 5 { break }
        }
        if trace != nil {
            log("-- end: A \(aRecord?.stage as Any), B \(bRecord?.stage as Any)")
            log("   source \(source), destination \(destination)")
        }
        try checkEnd()
    }

    /// A random walk with random faults. Now and then one actor is frozen for a while, so that the others overtake it;
    /// timers are slow beside everything else.
    mutating func wander(steps: Int, faults: Int) throws {
        let crashes: [Fault] = [.killAgentA, .killAgentB, .dropLink, .killSource, .killDestination]
        var faults = faults
        var frozen: Move?
        var frozenSteps = 0
        for _ in 0..<steps {
            if faults > 0, seed.chance(6) {
                let fault =
                    seed.chance(50)
                    ? crashes[seed.below(crashes.count)] : Fault.allCases[seed.below(Fault.allCases.count)]
                // A host that is gone ends most stories; keep it rare.
                if (fault == .hostAGone || fault == .hostBGone) && seed.chance(80) { continue }
                faults -= 1
                try inject(fault)
                continue
            }
            if !aAlive, seed.chance(5) { restartA() }
            if !bAlive, seed.chance(5) { restartB() }
            if !linkAllowed, seed.chance(5) { linkAllowed = true }
            if frozenSteps == 0 {
                frozen = seed.chance(30) ? Move.allCases[seed.below(Move.allCases.count)] : nil
                frozenSteps = 1 + seed.below(12)
            }
            frozenSteps -= 1
            let first = seed.below(Move.allCases.count)
            for offset in 0..<Move.allCases.count {
                let move = Move.allCases[(first + offset) % Move.allCases.count]
                if move == frozen || !isEnabled(move) { continue }
                if (move == .retryA || move == .retryB) && seed.chance(85) { continue }
                try perform(move)
                break
            }
        }
        try heal()
    }

    /// A fixed schedule (`order` is its priority) with given faults before given steps. What
    /// they broke is repaired `repair` steps later.
    mutating func march(order: [Move], faults: [(step: Int, fault: Fault)], repair: Int, steps: Int) throws {
        var repairAt = Int.max
        for step in 0..<steps {
            for (at, fault) in faults where at == step {
                try inject(fault)
                repairAt = step + repair
            }
            if step >= repairAt {
                linkAllowed = true
                restartA()
                restartB()
                repairAt = Int.max
            }
            var performed = false
            for move in order where isEnabled(move) {
                try perform(move)
                performed = true
                break
            }
            // At rest, and nothing more will happen to it.
            if !performed, repairAt == Int.max, !faults.contains(where: { $0.step > step }) { break }
        }
        try heal()
    }
}
