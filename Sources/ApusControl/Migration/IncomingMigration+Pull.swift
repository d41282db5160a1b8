import ApusAPI
import ApusFabric
import ApusFlow
import ApusMemory
import ApusSystem
import ApusWire
import Foundation
import Logging

/// What a successor must know to go on fetching the missing pages of a VM, in the VM's run directory. QEMU is not asked
/// again: its main thread may be the one that waits for a page.
///
/// ```
///   pull.json          token, RAM blocks and where their files are         written before anything can be missing
///   pull.missing       one bit a page                                      kept up to date, page by page
///   pager.journal      what is inside QEMU
/// ```
struct PullFiles: Codable, Sendable {
    var token: String
    /// In the order of the source's layout.
    var blocks: [OwnedBlock]

    private static func path(_ runDirectory: String) -> String { runDirectory + "/pull.json" }
    static func journalPath(_ runDirectory: String) -> String { runDirectory + "/pager.journal" }
    private static func wordsPath(_ runDirectory: String) -> String { runDirectory + "/pull.missing" }

    static func read(_ runDirectory: String) -> PullFiles? {
        FileManager.default.contents(atPath: path(runDirectory)).flatMap {
            try? JSONDecoder().decode(PullFiles.self, from: $0)
        }
    }

    func write(_ runDirectory: String) throws {
        try JSONEncoder().encode(self).write(to: URL(fileURLWithPath: Self.path(runDirectory)), options: .atomic)
    }

    static func remove(_ runDirectory: String) {
        for path in [path(runDirectory), wordsPath(runDirectory)] { try? FileManager.default.removeItem(atPath: path) }
    }

    func words(_ runDirectory: String, _ layout: Layout) throws -> WordFile {
        try WordFile(Self.wordsPath(runDirectory), wordCount: PullDestination.wordCount(layout))
    }
}

extension DirectAccess {
    func windows() throws -> [GuestWindow] {
        try blocks.map { block in
            try GuestWindow(
                try Descriptor.open(block.path, .readWrite), fileOffset: block.fileOffset, byteCount: block.byteCount)
        }
    }
}

/// Pages of an incoming VM that stayed at the source.
extension IncomingMigration {
    var runDirectory: String { services.config.runDirectory(ofVM: vm) }

    /// Makes ready for missing pages, before the first page comes.
    ///
    /// - Returns: the terms, with what has come of it.
    func preparePull(
        _ offer: MigrationOffer, _ machine: Machine, _ token: Token, _ terms: TransferTerms
    ) async throws -> TransferTerms {
        var terms = terms
        let blocks: [OwnedBlock]
        do throws(DirectAccess.Obstacle) {
            let text = offer.options[terms.direct ? "directBlocks" : "pullBlocks"]
            guard let offered = text.flatMap(DirectAccess.parse(offered:)) else {
                throw DirectAccess.Obstacle("The source's list of RAM blocks cannot be read.")
            }
            blocks = try await OwnedBlock.find(offered, in: machine)
            // What cannot be owned here travels before the guest moves, unless it is to come by the direct port.
            if terms.direct, blocks.count < offered.count {
                throw DirectAccess.Obstacle("Not all of the source's RAM blocks can be owned here.")
            }
        } catch {
            terms.pulls = false
            terms.reason = "At the destination: \(error)"
            return terms
        }
        guard let layout = blocks.layout else { preconditionFailure("QEMU's own blocks make a layout") }
        let runDirectory = machine.runDirectory
        let (report, rehearsal, latencies) = (pullReport, services.rehearsal, faultLatencies)
        try PullFiles(token: token.text, blocks: blocks).write(runDirectory)
        let pager: Pager
        do {
            pager = try await offPool("apus-pager") {
                try Pager.enter(
                    pid: machine.pid, areas: blocks.map(\.area), journal: PullFiles.journalPath(runDirectory))
            }
        } catch let error as InjectionError {
            PullFiles.remove(runDirectory)
            terms.pulls = false
            terms.reason = "At the destination: \(error)."
            return terms
        }
        pull = try await offPool("apus-pager") {
            let words = try PullFiles.read(runDirectory)?.words(runDirectory, layout)
            guard let words else { throw SystemError("open", code: 2) }
            return PullDestination(
                layout: layout, pager: pager, words: words,
                reached: rehearsal?.holdAtSteps("destination"),
                waited: { latencies.add(ns: $0) }, report: report)
        }
        expectPull(token)
        terms.pulls = true
        terms.pulledBlocks = terms.direct ? nil : blocks.offered
        return terms
    }

    /// Takes up what an agent that was killed has left; tried again at every beat until it can be done.
    func resumePull() async {
        let runDirectory = runDirectory
        let journal = PullFiles.journalPath(runDirectory)
        // It goes last: without it nothing is missing, and with it nothing may be thought whole.
        guard FileManager.default.fileExists(atPath: journal) else {
            lacksPull = false
            return endPull()
        }
        let (report, latencies) = (pullReport, faultLatencies)
        do {
            guard let files = PullFiles.read(runDirectory), let token = Token(text: files.token) else {
                throw Problem("pull-files", "\(runDirectory)/pull.json cannot be read.")
            }
            pull = try await offPool("apus-pager") {
                guard let layout = files.blocks.layout, let pager = try Pager.takeOver(journal: journal) else {
                    throw Problem("pull-files", "\(journal) cannot be used.")
                }
                let pull = PullDestination(
                    layout: layout, pager: pager, words: try files.words(runDirectory, layout),
                    waited: { latencies.add(ns: $0) }, report: report)
                try pull.takeOver(try files.blocks.map { try $0.port(pid: pager.pid) })
                return pull
            }
            self.token = token
            lacksPull = false
            expectPull(token)
            // What its thread has said may have come before it stood here.
            if pull?.isWhole == true { await leavePull() }
        } catch {
            lacksPull = true
            note(SessionProblem("pager", "Missing pages of \(vm) cannot be fetched: \(error)."))
        }
    }

    private func expectPull(_ token: Token) {
        guard let pull else { return }
        services.lanes.expectPull(token) { connection in try? pull.attach(connection) }
    }

    private nonisolated var pullReport: @Sendable (PullEvent) -> Void {
        { [self] event in
            switch event {
            case .whole: Task { await self.leavePull() }
            case .linkLost: Task { await self.loseLink("a connection for missing pages") }
            case .failed(let failure): self.post(.localFailed(SessionProblem(failure)))
            }
        }
    }

    /// Nothing is missing: takes everything out of QEMU again. As long as that fails it is tried again.
    private func leavePull() async {
        guard let pull else { return }
        while true {
            do {
                try await offPool("apus-pager") { try pull.leave() }
                if self.pull === pull { endPull() }
                return
            } catch {
                logger.warning("pager: \(error)", metadata: ["job": "\(job)"])
                if machine?.exit != nil || isOver { return }
                try? await Task.sleep(for: SessionTimes.beat)
            }
        }
    }

    private func endPull() {
        let counts = pull.map(counts(of:)) ?? PullCounts()
        pull = nil
        if let token { services.lanes.forgetPull(token) }
        PullFiles.remove(runDirectory)
        post(.becameWhole(counts))
    }

    /// What the source is told about the guest that runs: with pages missing, how to bring them.
    func withPull(_ report: ResumeReport) -> ResumeReport {
        guard let pull, let token, pull.isFlipped else { return report }
        var report = report
        report.pullToken = token.text
        report.pull = counts(of: pull)
        return report
    }

    private func counts(of pull: PullDestination) -> PullCounts {
        var counts = pull.counts()
        faultLatencies.fill(&counts)
        return counts
    }

    /// Looked at every beat: an operator must know when the source stays away.
    func watchSource() {
        guard case .pulling = session.state, let pull else { return sourceAway = nil }
        if let link, !link.isClosed { return sourceAway = nil }
        let since = sourceAway ?? Instant.now()
        sourceAway = since
        let limitS = services.config.link.sourceLossS
        guard Instant.now().ms(since: since) > limitS * 1000 else { return }
        sourceAway = since.adding(ms: limitS * 1000)
        post(.sourceSilent(.sourceAway(peer: "\(peer)", forS: limitS, missing: pull.missingText())))
    }
}

extension SessionProblem {
    static func sourceAway(peer: String, forS seconds: Double, missing: String) -> SessionProblem {
        SessionProblem(
            "source-away",
            "The source at \(peer) has not been reached for \(Int(seconds)) s. Still missing here: \(missing).",
            advice:
                "The VM stands still where it touches a missing page, until the source comes back. If its host is gone for "
                + "good, so are these pages: give the VM up with `apus job resolve JOB --revert`, and restore it.")
    }
}
