import ApusContent
import ApusFabric
import ApusFlow
import ApusMemory
import ApusQMP
import ApusSystem
import ApusWire
import Foundation

/// What `apus plan` asks the destination on a probe's connection: which pages it would read itself.
///
/// ```
///   SOURCE                                   DESTINATION
///     | -- VM, images ------------------------> |   can these be read? whose memory image would be used?
///     | <-- key of the trust domain, images --- |
///     | -- the same, hints of sampled pages --> |   only when there is an image
///     | <-- pages that the image has ---------- |
/// ```
///
/// As a migration would, except that no QEMU runs at the destination yet: whether the VM will have these disks there is not known.
struct SurveyQuestion: Codable, Sendable, Equatable {
    var vm: String
    var ramBytes: UInt64
    /// Paths of disk images that are indexed at the source, at most `Limits.images`.
    var images: [String]
    /// Hints of pages, under the key that was told; at most `MemorySampler.pagesMax`.
    var hints: [PageNumber: UInt64]?
}

struct SurveyAnswer: Codable, Sendable, Equatable {
    /// As a migration's; the note says what was given up.
    var terms: ContentTerms
    /// Whose memory image would be used; nil: there is none.
    var holder: String?
    /// Of the pages asked for, those that are in it.
    var held: [PageNumber]?
}

extension ContentDesk {
    /// - Returns: nil when the question makes no sense, or references are off here.
    func reply(to question: [UInt8]) -> [UInt8]? {
        guard let asked = try? JSONDecoder().decode(SurveyQuestion.self, from: Data(question)),
            let answer = answer(asked)
        else { return nil }
        return (try? JSONEncoder().encode(answer)).map { Array($0) }
    }

    /// Blocks.
    func answer(_ question: SurveyQuestion) -> SurveyAnswer? {
        guard question.images.count <= Limits.images, question.hints?.count ?? 0 <= MemorySampler.pagesMax,
            let secret = try? domainSecret(ofVM: question.vm)
        else { return nil }
        var answer = SurveyAnswer(terms: ContentTerms(secret: ContentTerms.text(secret), images: [], notes: []))
        for (number, path) in question.images.enumerated() where config.disks {
            do throws(IndexError) {
                _ = try ImageReader.openImage(path)
                answer.terms.images.append(number)
            } catch { answer.terms.notes.append("Pages are not looked for on \(path). \(error)") }
        }
        do {
            let (vm, ramBytes, key) = (question.vm, question.ramBytes, Self.key(secret))
            answer.holder = try store?.holder(of: vm, key, ramBytes: ramBytes)
            if let hints = question.hints, let image = try store?.snapshot(of: vm, key, ramBytes: ramBytes) {
                answer.held = Self.pages(of: hints, in: image)
            }
        } catch { answer.terms.notes.append("The memory image of \(question.vm) is not used. \(error)") }
        return answer
    }

    private static func pages(of hints: [PageNumber: UInt64], in image: Snapshot) -> [PageNumber] {
        let wanted = Set(hints.values)
        var found: Set<UInt64> = []
        for page in 0..<image.pageCount {
            let hint = image.hint(of: page)
            if hint != 0, wanted.contains(hint) { found.insert(hint) }
        }
        return hints.filter { found.contains($0.value) }.keys.sorted()
    }

    /// What a migration to this peer could refer to. Blocks, except while QEMU is asked.
    ///
    /// - Parameters:
    ///   - sampler: pages that the peer is asked about.
    ///   - notes: gets what was given up.
    /// - Returns: nil: nothing.
    func survey(
        _ machine: Machine, _ sampler: MemorySampler, _ peer: Endpoint, host: String, _ notes: inout [String]
    ) async throws -> SampleReferences? {
        guard let indexKey = try? indexKey() else { return nil }
        var images: [(path: String, index: BlockIndex)] = []
        for path in (config.disks ? await machine.diskImages()?.paths ?? [] : []).prefix(Limits.images) {
            switch index(of: path) {
            case .success(let index): images.append((path, index))
            case .failure(let absence): notes.append("Pages are not looked for on \(path): \(absence.why).")
            }
        }
        var question = SurveyQuestion(
            vm: machine.name, ramBytes: machine.definition.ramBytes, images: images.map(\.path))
        var references = SampleReferences(images: [], indexKey: indexKey)
        let first = question
        guard let answer = try await offPool("apus-survey", { try? Self.ask(peer, first) }) else {
            notes.append("\(host) does not tell what it could read itself.")
            return nil
        }
        notes += Self.told(answer, host)
        references.images = answer.terms.images.filter(images.indices.contains).map { images[$0].index }
        guard answer.holder != nil, let secret = answer.terms.secretBytes else { return references }
        question.hints = try await offPool("apus-sample") { try sampler.hints(Self.key(secret)) }
        let second = question
        do {
            let answer = try await offPool("apus-survey") { try Self.ask(peer, second) }
            if answer.held == nil { notes += Self.told(answer, host) }
            references.held = Set(answer.held ?? [])
        } catch { notes.append("\(host) does not tell what it holds of \(machine.name): \(error)") }
        return references
    }

    private static func told(_ answer: SurveyAnswer, _ host: String) -> [String] {
        answer.terms.notes.prefix(SessionLimits.entryCountMax).map { "\(host) says: \($0)" }
    }

    /// Waits while the peer is busy, be it only with taking leave of the connection before.
    private static func ask(_ peer: Endpoint, _ question: SurveyQuestion) throws -> SurveyAnswer {
        let words = try Array(JSONEncoder().encode(question))
        var tries = 1
        while true {
            do {
                let bytes = try LinkProbe.ask(peer, words)
                return try JSONDecoder().decode(SurveyAnswer.self, from: Data(bytes))
            } catch FabricError.refused(let refusal) where refusal.code == .busy && tries < askTriesMax {
                tries += 1
                pause(ms: askPauseMs)
            }
        }
    }
    private static let askTriesMax = 20
    private static let askPauseMs = 50.0
}
