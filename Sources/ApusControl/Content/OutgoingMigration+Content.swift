import ApusAPI
import ApusContent
import ApusFlow
import ApusMemory
import ApusQMP
import ApusSystem
import ApusWire
import Foundation
import Logging

/// An outgoing job's references, from the offer to the last page.
struct OutgoingContent: Sendable {
    /// Images that were offered, with their indexes.
    var images: [(path: String, index: BlockIndex)] = []
    var held: PeerPagesInbox?
    /// What the lanes use; nil: nothing was agreed on.
    var references: SourceReferences?
    /// Whether the destination has a snapshot.
    var usesSnapshot = false
    /// What is left of the VM here when it has gone.
    var left: MemoryImage?
}

extension OutgoingMigration {
    /// What of the VM could be had elsewhere; nil: references are off.
    func offerContent(_ machine: Machine) async -> String? {
        let desk = services.content
        guard request.references ?? true, pull != .everything else { return nil }
        do { _ = try desk.key(ofVM: machine.name) } catch {
            if error.code != "content-off" { status.notes.append("No references: \(error.message)") }
            return nil
        }
        if desk.config.disks, let disks = await machine.diskImages() {
            for refusal in disks.refused {
                status.notes.append("Pages are not looked for on \(refusal.file): \(refusal.reason).")
            }
            for path in disks.paths.prefix(Limits.images) {
                switch desk.index(of: path) {
                case .success(let index): content.images.append((path, index))
                case .failure(let absence):
                    status.notes.append("Pages are not looked for on \(path): \(absence.why).")
                }
            }
        }
        let held = PeerPagesInbox(ramBytes: machine.definition.ramBytes)
        content.held = held
        router.setFlow { held.take($0) }
        return try? SessionRow.encode(ContentOffer(images: content.images.map(\.path)))
    }

    func agree(onContent terms: TransferTerms) {
        guard content.held != nil else { return }
        let held = content.held?.takePages()
        guard let agreed = terms.content else { return }
        status.notes += agreed.notes.prefix(SessionLimits.entryCountMax).map { "\(request.host) says: \($0)" }
        let numbers = agreed.images
        guard let secret = agreed.secretBytes, numbers.allSatisfy(content.images.indices.contains),
            let indexKey = try? services.content.indexKey()
        else { return status.notes.append("No references: the destination's terms make no sense.") }
        content.usesSnapshot = held != nil
        if numbers.isEmpty && held == nil { return }
        content.references = SourceReferences(
            key: ContentDesk.key(secret), images: numbers.map { content.images[$0].index }, indexKey: indexKey,
            snapshot: held)
    }

    /// What was given up, once all is over.
    func noteReferences(_ sample: FlowSample) {
        func count(_ pages: UInt64) -> String { pages == 1 ? "1 page" : "\(pages) pages" }
        if sample.refusedPages > 0 {
            status.notes.append(
                "\(count(sample.refusedPages)) travelled after all: the destination did not find their content where it was "
                    + "referred to. A disk was written to, cannot be read there, or is another one."
            )
        }
        if sample.unansweredPages > 0 {
            status.notes.append(
                "\(count(sample.unansweredPages)) travelled after all: the destination's storage was too slow to read them in time."
            )
        }
        if sample.referenceClosures > 0 {
            status.notes.append(
                "References were left out for a while, \(sample.referenceClosures) times: too many were wrong, or storage was "
                    + "slower than the link."
            )
        }
    }

    /// Before the stopped QEMU ends: takes hold of its memory, for the store.
    func holdLeftMemory() {
        guard session.state == .completed, services.content.store != nil else { return }
        content.left = transfer?.flow.memoryImage
    }

    /// After it: what the VM has left here is kept for its return.
    func keepLeftMemory() {
        guard let store = services.content.store, session.state == .completed else { return }
        guard let left = content.left else {
            return status.notes.append("No memory image of \(request.vm) is kept: its memory was QEMU's alone.")
        }
        content.left = nil
        guard let key = try? services.content.key(ofVM: request.vm) else { return }
        if let why = store.keep(request.vm, key, left) {
            status.notes.append("No memory image of \(request.vm) is kept: \(why).")
        }
    }
}
