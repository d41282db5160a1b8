import ApusAPI

/// A running job in one line. The percentage never goes back, whatever the samples say.
struct ProgressLine {
    private var percentShown = 0

    /// `columns` nil: as long as it gets; else fields are left out from the right until it fits.
    mutating func text(_ job: JobStatus, columns: Int?) -> String {
        percentShown = max(percentShown, min(100, Int((job.progress.fraction * 100).rounded(.down))))
        let head = job.direction == .outgoing ? "\(job.vm) → \(job.peer)" : "\(job.vm) ← \(job.peer)"
        var fields = [head] + Self.fields(job, percent: percentShown)
        guard let columns else { return fields.joined(separator: "  ") }
        // The last column stays free: some terminals wrap there.
        while fields.count > 2, fields.joined(separator: "  ").count > columns - 1 { fields.removeLast() }
        return String(fields.joined(separator: "  ").prefix(max(0, columns - 1)))
    }

    private static func fields(_ job: JobStatus, percent: Int) -> [String] {
        let progress = job.progress
        switch job.phase {
        case .preparing: return ["preparing"]
        case .committing: return ["\(percent) %", "handing over"]
        case .inDoubt: return ["in doubt: waiting for the destination"]
        case .pulling: return ["fetching", "\(Units.bytes(progress.memoryRemainingBytes)) left"]
        case .completed, .failed, .aborted: return [job.phase.rawValue]
        case .transferring, .switching: break
        }
        var fields = ["\(percent) %"]
        fields.append(job.phase == .switching ? "switching over" : "round \(max(1, progress.round))")
        fields.append(Units.rate(progress.rateBytesPerS))
        if let way = job.chosen, way.basis != .firstPass {
            fields.append("\(way.mode.rawValue) by \(way.basis.rawValue)")
        }
        fields.append("\(Units.bytes(progress.memoryRemainingBytes)) left")
        if progress.round > 1 || progress.dirtyRateBytesPerS > 0 {
            fields.append("dirty \(Units.rate(progress.dirtyRateBytesPerS))")
        }
        if let ms = progress.predictedRemainingMs { fields.append("ready in \(Units.duration(ms))") }
        if let ms = progress.predictedDowntimeMs { fields.append("pause ~\(Units.milliseconds(ms))") }
        return fields
    }
}
