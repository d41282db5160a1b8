import ApusAPI

extension Text {
    /// The end of a job: one sentence of what it means, then what it cost.
    static func summary(of job: JobStatus) -> String {
        var blocks = [outcome(of: job)]
        if let summary = job.summary, job.phase == .completed || job.phase == .inDoubt {
            blocks.append(list(costs(summary)))
        }
        return blocks.joined(separator: "\n")
    }

    static func outcome(of job: JobStatus) -> String {
        let stays = job.direction == .outgoing ? "\(job.vm) runs on here." : "\(job.vm) stays on \(job.peer)."
        let why = job.error.map { " \($0.message)\($0.message.hasSuffix(".") ? "" : ".")" } ?? ""
        let advice = job.error?.advice.map { "\n\($0)" } ?? ""
        switch job.phase {
        case .completed where job.direction == .incoming: return "\(job.vm) arrived from \(job.peer)."
        case .completed:
            let pause = job.summary?.downtimeMs.map { "; it paused for \(Units.milliseconds($0))" } ?? ""
            return
                "\(job.vm) moved to \(job.peer) in \(Units.duration(job.summary?.totalMs ?? job.progress.elapsedMs))\(pause)."
        case .failed: return "\(job.vm) was not moved.\(why) \(stays)\(advice)"
        case .aborted: return "Aborted.\(why) \(stays)"
        case .inDoubt:
            return "\(job.vm) is in doubt.\(why) It was handed over to \(job.peer), which has not said that it runs.\n"
                + "Look there (`apus vm list`), then decide: `apus job resolve \(job.id) --commit` if it is there, --revert if not."
        case .preparing, .transferring, .switching, .committing, .pulling: return "\(job.vm): \(job.phase.rawValue)."
        }
    }

    private static func costs(_ summary: JobSummary) -> [(String, String)] {
        var rows = [("total time", Units.duration(summary.totalMs)), ("downtime", downtime(summary))]
        let rate = summary.totalMs > 0 ? Double(summary.wireBytes) / summary.totalMs * 1000 : 0
        let rounds = summary.rounds == 1 ? "1 round" : "\(summary.rounds) rounds"
        rows.append(("wire", "\(Units.bytes(summary.wireBytes)) in \(rounds), \(Units.rate(rate)) over the whole"))
        let width = summary.forms.map(\.form.count).max() ?? 0
        for (index, form) in summary.forms.enumerated() {
            let name = form.form + String(repeating: " ", count: width - form.form.count)
            let text = "\(name)  \(Units.count(form.pages)) pages, \(Units.bytes(form.wireBytes))"
            rows.append((index == 0 ? "pages" : "", text))
        }
        rows += again(summary)
        if let speed = summary.slowedTo {
            let stood = summary.slowedMs.map { ", its vCPUs stood still for \(Units.duration($0))" } ?? ""
            rows.append(("slowed", "to \(Units.decimals(speed * 100, 0)) % of its speed\(stood)"))
        }
        if !summary.installed.isEmpty { rows.append(("RAM", installed(summary.installed))) }
        if summary.sourceCPUS != nil || summary.destinationCPUS != nil {
            func seconds(_ value: Double?) -> String { value.map { "\(Units.decimals($0, 2)) s" } ?? "?" }
            rows.append(
                ("agent CPU", "source \(seconds(summary.sourceCPUS)), destination \(seconds(summary.destinationCPUS))"))
        }
        return rows
    }

    /// What the memory port and changed lines did.
    private static func again(_ summary: JobSummary) -> [(String, String)] {
        var rows: [(String, String)] = []
        if let lines = summary.lines, lines.pages + lines.samePages > 0 {
            let perPage = lines.pages > 0 ? Double(lines.changedLines) / Double(lines.pages) : 0
            rows.append(
                (
                    "sent again",
                    "\(Units.decimals(perPage, 1)) lines of \(lines.lineBytes) bytes a page, "
                        + "\(Units.decimals(lines.ratio * 100, 1)) % of the pages; hashes \(Units.bytes(lines.tableBytes))"
                ))
        }
        if let pull = summary.pull {
            let whole = pull.wholeMs.map { ", whole after \(Units.duration($0))" } ?? ""
            rows.append(
                (
                    "fetched",
                    "\(Units.count(pull.missingPages)) pages: \(Units.count(pull.faultedPages)) on demand, "
                        + "\(Units.count(pull.pushedPages)) pushed\(whole)"
                ))
            rows.append(
                (
                    "faults",
                    "\(Units.count(pull.faults)), half of them within \(Units.milliseconds(pull.faultP50Us / 1000)), "
                        + "99 % within \(Units.milliseconds(pull.faultP99Us / 1000)), "
                        + "longest \(Units.milliseconds(pull.faultMaxUs / 1000)); "
                        + "\(Units.milliseconds(pull.stallMs)) of waiting in all"
                ))
            if let prefetch = pull.prefetch { rows += foreseen(prefetch) }
            if let coverage = pull.coverage {
                let accuracy = pull.accuracy.map {
                    "; of those foreseen it used \(Units.decimals($0 * 100, 0)) % meanwhile"
                }
                rows.append(
                    (
                        "in time",
                        "\(Units.decimals(coverage * 100, 1)) % of the missing pages that it used came before it asked"
                            + (accuracy ?? "")
                    ))
            }
        }
        if let verified = summary.verifiedPages {
            let repaired = summary.repairedPages ?? 0
            rows.append(("verified", "\(Units.count(verified)) pages, \(Units.count(repaired)) of them sent again"))
        }
        if let port = summary.port {
            let hot = summary.hotPages.map { ", \(Units.count($0)) hot pages kept for the switch" } ?? ""
            let fence = summary.fenceMs.map { ", fence \(Units.milliseconds($0))" } ?? ""
            rows.append(("port", port.rawValue + hot + fence))
        }
        return rows
    }

    private static func foreseen(_ prefetch: PrefetchSummary) -> [(String, String)] {
        var rows = [
            (
                "pushed",
                "\(Units.count(prefetch.recordedPages)) pages used before, \(Units.count(prefetch.trendPages)) by trend, "
                    + "\(Units.count(prefetch.nearPages)) near touched ones, \(Units.count(prefetch.restPages)) others"
            )
        ]
        if prefetch.recordMs > 0 {
            rows.append(
                (
                    "recorded",
                    "\(Units.count(prefetch.recordPages)) pages in \(Units.milliseconds(prefetch.recordMs)); page tables "
                        + "emptied in \(Units.milliseconds(prefetch.zapMs)), looks \(Units.milliseconds(prefetch.looksMs)): "
                        + "\(Units.decimals(prefetch.recordingShare * 100, 0)) % of that time"
                ))
        }
        return rows
    }

    /// The blocks by the way they went, `mapped` first; the many small ones of ROMs and tables are only counted.
    private static func installed(_ blocks: [String: String]) -> String {
        let ways = Dictionary(grouping: blocks.keys.sorted()) { blocks[$0] ?? "" }.sorted { $0.key < $1.key }
        return ways.map { way, names in
            names.count <= 2 ? "\(names.joined(separator: " and ")) \(way)" : "\(names.count) blocks \(way)"
        }.joined(separator: ", ")
    }

    private static func downtime(_ summary: JobSummary) -> String {
        var parts: [String] = []
        if let measured = summary.downtimeMs {
            let detail = summary.downtimeParts.map { "\($0.name) \(Units.decimals($0.ms, 1))" }.joined(separator: ", ")
            parts.append(Units.milliseconds(measured) + " measured" + (detail.isEmpty ? "" : " (\(detail))"))
        } else {
            parts.append("not measured")
        }
        if let qemu = summary.qemuDowntimeMs { parts.append("QEMU says \(Units.milliseconds(qemu))") }
        if let predicted = summary.predictedDowntimeMs { parts.append("predicted \(Units.milliseconds(predicted))") }
        return parts.joined(separator: "; ")
    }
}
