import ApusAPI
import ApusContent
import ApusFabric
import ApusFlow
import ApusMemory
import ApusQMP
import ApusSystem
import ApusWire
import Foundation

extension IncomingMigration {
    /// Looks what the source may refer to: images that the VM has here too, and what it left here when it went.
    ///
    /// - Returns: nil when the source asks for nothing, or this host allows nothing.
    func prepareContent(
        _ offer: MigrationOffer, _ machine: Machine
    ) async -> (terms: ContentTerms, references: DestinationReferences)? {
        guard let text = offer.options["content"],
            let wanted = try? JSONDecoder().decode(ContentOffer.self, from: Data(text.utf8)),
            wanted.images.count <= Limits.images
        else { return nil }
        let desk = services.content
        guard let secret = try? desk.domainSecret(ofVM: vm) else { return nil }
        let key = ContentDesk.key(secret)
        var terms = ContentTerms(secret: ContentTerms.text(secret), images: [], notes: [])
        let images = await openImages(wanted.images, machine, &terms)
        var snapshot: Snapshot?
        do {
            let (vm, ramBytes) = (vm, machine.definition.ramBytes)
            snapshot = try await offPool("apus-snapshot") { try desk.store?.snapshot(of: vm, key, ramBytes: ramBytes) }
            if let found = snapshot, found.vm != vm {
                terms.notes.append("Pages are looked for in the memory image of \(found.vm), for \(vm) left none.")
            }
            if let found = snapshot, found.pageCount > PageNumber(Limits.snapshotPages) {
                terms.notes.append("The memory image of \(vm) is not used: it is too large.")
                snapshot = nil
            }
        } catch StoreError.busy {
            terms.notes.append("The memory image of \(vm) is not used: it is still being written.")
        } catch {
            terms.notes.append("The memory image of \(vm) is not used. \(error)")
        }
        if let snapshot { tell(snapshot) }
        return (terms, DestinationReferences(key: key, images: images, snapshot: snapshot))
    }

    /// Only files that the VM's own QEMU has open here: a peer must not choose what this agent reads.
    private func openImages(_ paths: [String], _ machine: Machine, _ terms: inout ContentTerms) async -> [Descriptor?] {
        guard !paths.isEmpty, services.content.config.disks else { return [] }
        let own = Set(await machine.diskImages()?.paths ?? [])
        var images: [Descriptor?] = []
        for (number, path) in paths.enumerated() {
            guard own.contains(path) else {
                terms.notes.append("Pages are not looked for on \(path): the VM has no such disk here.")
                continue
            }
            do throws(IndexError) {
                images.append(try ImageReader.openImage(path))
                terms.images.append(number)
            } catch { terms.notes.append("Pages are not looked for on \(path). \(error)") }
        }
        return images
    }

    /// Before `ready`, on the same connection: the source has it all when it begins.
    private func tell(_ snapshot: Snapshot) {
        var first: PageNumber = 0
        while first < snapshot.pageCount {
            let count = min(HeldPayload.hintsMax, Int(snapshot.pageCount - first))
            if let bytes = HeldPayload.bytes(
                pageCount: snapshot.pageCount, first: first, count: count, { snapshot.hint(of: $0) })
            {
                link?.post(.init(.held, bytes))
            }
            first += PageNumber(count)
        }
    }
}
