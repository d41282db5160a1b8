public import ApusAPI
import ApusContent
import ApusMemory
import Foundation

// What people see and do of the store: `apus store`.
extension ContentDesk {
    func report() async -> StoreReport {
        var report = StoreReport()
        report.disks = images.sorted { $0.key < $1.key }.map { path, image in
            IndexedDisk(
                path: path, blocks: image.index?.blocks ?? 0, tableBytes: image.index?.tableBytes ?? 0,
                state: image.state)
        }
        guard let store else { return report }
        report.path = store.path
        report.bytesMax = store.bytesMax
        report.problem = store.problem
        let writing = store.writing
        do {
            let contents = try await offPool("apus-store") { try store.contents() }
            report.byteCount = contents.byteCount
            report.images = contents.images.map { image in
                StoredImage(
                    vm: image.vm, memoryBytes: UInt64(image.pageCount) * UInt64(Limits.pageBytes),
                    usedAt: Date(timeIntervalSince1970: Double(image.usedNs) / 1e9))
            }
            report.images += writing.map { StoredImage(vm: $0, memoryBytes: 0) }
            if report.problem == nil, !contents.repairs.isEmpty {
                report.problem = contents.repairs.joined(separator: "; ")
            }
        } catch { report.problem = "\(error)" }
        return report
    }

    /// - Throws: `Problem` `store-off`, `store-failed`.
    func collect() async throws -> StoreReport {
        let store = try opened()
        try await Self.told { try store.collect() }
        return await report()
    }

    /// - Throws: `Problem` `image-unknown`, `store-off`, `store-failed`.
    func drop(_ vm: String, wipes: Bool) async throws -> StoreReport {
        let store = try opened()
        let count = try await Self.told { try store.drop(vm, wipes: wipes) }
        if count == 0 {
            throw Problem(
                "image-unknown", "The store has no memory image of \(vm).", advice: "See `apus store show`.")
        }
        return await report()
    }

    private func opened() throws(Problem) -> ImageStore {
        guard let store else {
            throw Problem("store-off", "This agent keeps no memory images (content.storeMiB is 0).")
        }
        return store
    }

    private static func told<R: Sendable>(_ body: @escaping @Sendable () throws -> R) async throws -> R {
        do { return try await offPool("apus-store", body) } catch {
            throw Problem("store-failed", "\(error)")
        }
    }
}

extension Migrations {
    public func showStore() async -> StoreReport { await content.report() }
    public func collectStore() async throws -> StoreReport { try await content.collect() }
    public func dropImage(of vm: String, wipes: Bool) async throws -> StoreReport {
        try await content.drop(vm, wipes: wipes)
    }
}
