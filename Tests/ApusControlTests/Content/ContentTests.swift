import ApusContent
import ApusFabric
import ApusMemory
import ApusSystem
import ApusWire
import Foundation
import Logging
import Testing

@testable import ApusControl
@testable import ApusFlow

/// What an agent keeps and finds elsewhere, and what it believes of its peer.
@Suite struct ContentTests {
    /// Gone with the test.
    private final class Folder: Sendable {
        let path = NSTemporaryDirectory() + "content-" + UUID().uuidString
        init() throws { try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true) }
        deinit { try? FileManager.default.removeItem(atPath: path) }
    }
    private let home: Folder
    private var folder: String { home.path }
    private let logger = Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }

    init() throws { home = try Folder() }

    private func desk(_ change: (inout AgentConfig) -> Void = { _ in }) -> ContentDesk {
        var config = AgentConfig()
        config.stateDirectory = folder
        change(&config)
        return ContentDesk(config, logger)
    }

    // MARK: Keys

    @Test func aKeyIsMadeOnceAndSeparatesDomains() throws {
        let first = try desk().key(ofVM: "web").fingerprint
        #expect(try desk().key(ofVM: "web").fingerprint == first)
        #expect(try desk().key(ofVM: "db").fingerprint == first)
        let shops = desk { $0.content.domains = ["web": "shop"] }
        #expect(try shops.key(ofVM: "web").fingerprint != first)
        #expect(try shops.key(ofVM: "db").fingerprint == first)
        // What a peer is told gives the same key there, and no other.
        let told = ContentTerms(secret: ContentTerms.text(try shops.domainSecret(ofVM: "web")), images: [], notes: [])
        let there = ContentDesk.key(try #require(told.secretBytes))
        #expect(try there.fingerprint == shops.key(ofVM: "web").fingerprint)
        #expect(try there.fingerprint != shops.indexKey().fingerprint)
        let mode = try FileManager.default.attributesOfItem(atPath: folder + "/content/key")[.posixPermissions]
        #expect(mode as? Int == 0o600)
    }

    @Test func aSharedKeyFileCounts() throws {
        let path = folder + "/shared"
        try Data("0123456789abcdef".utf8).write(to: URL(fileURLWithPath: path))
        let shared = try desk { $0.content.keyFile = path }.key(ofVM: "web").fingerprint
        #expect(try desk().key(ofVM: "web").fingerprint != shared)
        try Data("short".utf8).write(to: URL(fileURLWithPath: path))
        #expect(throws: (any Error).self) { try desk { $0.content.keyFile = path }.key(ofVM: "web") }
        #expect(throws: (any Error).self) { try desk { $0.content.keyFile = "/nowhere" }.key(ofVM: "web") }
    }

    @Test func whatIsOffIsOff() {
        let off = desk {
            $0.content.disks = false
            $0.content.storeMiB = 0
        }
        #expect(off.store == nil)
        #expect(throws: (any Error).self) { try off.key(ofVM: "web") }
        #expect(!FileManager.default.fileExists(atPath: folder + "/content"))
    }

    // MARK: Memory images

    private func image(pages: Int) throws -> MemoryImage {
        let byteCount = UInt64(pages * 4096)
        let window = try GuestWindow(
            try Descriptor.memoryFile(byteCount: byteCount), fileOffset: 0, byteCount: byteCount)
        // Every other page was never written.
        for page in stride(from: 0, to: pages, by: 2) {
            window.install(
                [UInt8](repeating: UInt8(truncatingIfNeeded: page / 2 + 1), count: 4096).rawBytes,
                at: UInt64(page * 4096))
        }
        return try #require(MemoryImage(try Layout([("pc.ram", byteCount)]), [.mapped(window)]))
    }

    private func settle(_ store: ImageStore) {
        for _ in 0..<1000 where !store.writing.isEmpty { pause(ms: 10) }
    }

    @Test func whatAVMLeavesIsThereForItsReturn() throws {
        let desk = desk()
        let store = try #require(desk.store)
        let key = try desk.key(ofVM: "web")
        #expect(try store.snapshot(of: "web", key)?.pageCount == nil)
        #expect(store.keep("web", key, try image(pages: 200)) == nil)
        settle(store)
        #expect(store.problem == nil)
        let snapshot = try #require(try store.snapshot(of: "web", key))
        #expect(snapshot.pageCount == 200)
        #expect((0..<200).allSatisfy { (snapshot.hint(of: PageNumber($0)) != 0) == ($0 % 2 == 0) })
        // Of another domain, another agent on the same folder.
        #expect(
            try store.snapshot(of: "web", ContentKey(secret: [UInt8](repeating: 1, count: 32), domain: ""))?.vm == nil)
        #expect(throws: StoreError.self) { try ImageStore(path: store.path, bytesMax: 1 << 20, logger).contents() }
        #expect(try store.drop("web", wipes: true) == 1)
        #expect(try store.drop("web", wipes: true) == 0)
        #expect(try store.contents().images.isEmpty)
    }

    @Test func whatDoesNotFitIsNotBegun() throws {
        let store = ImageStore(path: folder + "/small", bytesMax: 64 << 10, logger)
        let key = ContentKey(secret: [UInt8](repeating: 1, count: 32), domain: "")
        #expect(store.keep("web", key, try image(pages: 2000))?.contains("content.storeMiB") == true)
        #expect(store.writing.isEmpty)
    }

    /// A disk or a host that is too slow must not keep the RAM of VMs that have left.
    @Test func whatTakesTooLongIsGivenUp() throws {
        let store = ImageStore(path: folder + "/slow", bytesMax: 1 << 30, keepMs: 0, logger)
        let key = ContentKey(secret: [UInt8](repeating: 1, count: 32), domain: "")
        #expect(store.keep("web", key, try image(pages: 2000)) == nil)
        settle(store)
        #expect(store.problem?.contains("of web was not kept") == true && store.problem?.contains("keepS") == true)
        #expect(try store.contents().images.isEmpty)
        #expect(store.writing.isEmpty, "its memory stays")
        // The next one is none the worse for it.
        let patient = try #require(desk().store)
        #expect(patient.keep("web", key, try image(pages: 2000)) == nil)
        settle(patient)
        #expect(patient.problem == nil)
    }

    // MARK: Asked by `apus plan`

    @Test func aSurveySaysWhatAMigrationWouldFind() throws {
        let desk = desk { $0.content.domains = ["stranger": "other"] }
        let store = try #require(desk.store)
        let key = try desk.key(ofVM: "web")
        let pages = 200
        #expect(store.keep("web", key, try image(pages: pages)) == nil)
        settle(store)
        let disk = folder + "/disk"
        try Data(count: 8192).write(to: URL(fileURLWithPath: disk))
        let ramBytes = UInt64(pages * 4096)
        var question = SurveyQuestion(vm: "web", ramBytes: ramBytes, images: ["/nowhere", disk])
        let first = try #require(desk.answer(question))
        #expect(first.terms.images == [1] && first.terms.notes.count == 1 && first.terms.notes[0].contains("/nowhere"))
        #expect(first.holder == "web" && first.held == nil)
        let snapshot = try #require(try store.snapshot(of: "web", key))
        // In place, moved, and nowhere.
        question.hints = [2: snapshot.hint(of: 2), 5: snapshot.hint(of: 4), 7: 12345]
        let bytes = try #require(desk.reply(to: Array(try JSONEncoder().encode(question))))
        #expect(try JSONDecoder().decode(SurveyAnswer.self, from: Data(bytes)).held == [2, 5])
        // A clone finds the same; one of another size, or of another tenant, does not.
        question.vm = "clone"
        let clone = try #require(desk.answer(question))
        #expect(clone.holder == "web" && clone.held == [2, 5])
        question.ramBytes = ramBytes + 4096
        #expect(desk.answer(question)?.holder == nil)
        (question.vm, question.ramBytes) = ("stranger", ramBytes)
        let stranger = try #require(desk.answer(question))
        #expect(stranger.holder == nil && stranger.held == nil)
    }

    @Test func whatIsReferredToCostsItsProofsOnly() {
        var sample = MemorySample(pages: 100, zeroPages: 20, bytesPerPage: 2000)
        #expect(sample.bytesPerPageReferred == 2000)
        (sample.diskPages, sample.snapshotPages, sample.proofs) = (30, 10, 40)
        #expect(sample.bytesPerPageReferred == (2000 + Double(ReferencePayload.entryBytes)) / 2)
        sample.proofs = 4
        #expect(sample.bytesPerPageReferred == (2000 + Double(ReferencePayload.entryBytes) / 10) / 2)
    }

    @Test func neighboursTakeOneProof() {
        typealias Place = SampleReferences.Place
        let block = Place.disk(image: 1, block: 7)
        #expect(Place.disk(image: 1, block: 8).continues(block) && Place.snapshot(4).continues(.snapshot(3)))
        for other: Place? in [nil, .snapshot(7), .disk(image: 0, block: 7), .disk(image: 1, block: 8)] {
            #expect(!Place.disk(image: 1, block: 8).continues(other))
        }
        #expect(!Place.snapshot(0).continues(.snapshot(.max)) && !Place.snapshot(5).continues(.snapshot(3)))
    }

    @Test func aSurveyThatMakesNoSenseIsNotAnswered() throws {
        let desk = desk()
        #expect(desk.reply(to: []) == nil)
        #expect(desk.reply(to: Array("{}".utf8)) == nil)
        var question = SurveyQuestion(vm: "web", ramBytes: 1 << 20, images: [])
        #expect(desk.answer(question) != nil)
        question.images = [String](repeating: "/disk", count: Limits.images + 1)
        #expect(desk.answer(question) == nil)
        question.images = []
        question.hints = [PageNumber: UInt64](
            uniqueKeysWithValues: (0...MemorySampler.pagesMax).map { (PageNumber($0), 1) })
        #expect(desk.answer(question) == nil)
        let off = self.desk {
            $0.content.disks = false
            $0.content.storeMiB = 0
        }
        #expect(off.answer(SurveyQuestion(vm: "web", ramBytes: 1 << 20, images: [])) == nil)
    }

    // MARK: Peers

    @Test(arguments: [
        "", "00", String(repeating: "g", count: 64), String(repeating: "0", count: 65),
        "é" + String(repeating: "0", count: 62),
    ])
    func aSecretIsHexadecimal(text: String) {
        #expect(ContentTerms(secret: text, images: [], notes: []).secretBytes == nil)
    }

    @Test func hintsOfAPeerAreBounded() throws {
        let inbox = PeerPagesInbox(ramBytes: 1 << 20)
        func frame(_ pageCount: PageNumber, _ first: PageNumber) throws -> ControlLink.Message {
            .init(
                .held, try #require(HeldPayload.bytes(pageCount: pageCount, first: first, count: 4) { UInt64($0) + 7 }))
        }
        inbox.take(.init(.held, [1, 2, 3]))
        inbox.take(try frame(1 << 24, 0))
        inbox.take(.init(.stream, [0, 0, 0, 0, 0, 0, 0, 0]))
        let nothing = inbox.takePages() == nil
        #expect(nothing)
        inbox.take(try frame(300, 0))
        // Of another snapshot.
        inbox.take(try frame(200, 100))
        inbox.take(try frame(300, 200))
        guard let pages = inbox.takePages() else {
            Issue.record("nothing was taken")
            return
        }
        let (count, same, near, other) =
            (pages.pageCount, pages.find(207, at: 200), pages.find(9, at: 2), pages.find(107, at: 100))
        #expect(count == 300)
        #expect(same == 200 && near == 2 && other == nil)
    }
}
