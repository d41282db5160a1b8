import ApusQMP
import Foundation
import Testing

/// What a QEMU 7.2 says about a raw disk, a qcow2 with a backing file, LUKS, an encrypted qcow2 and NBD.
@Suite struct DiskImagesTests {
    private func nodes() throws -> [BlockNode] {
        let file = try #require(Bundle.module.url(forResource: "Fixtures/block-nodes-7.2", withExtension: "json"))
        return try JSONDecoder().decode([BlockNode].self, from: Data(contentsOf: file))
    }

    @Test func localFilesAreFoundWithTheirBackingChain() throws {
        let images = DiskImages(try nodes(), workingDirectory: "/var/vm")
        #expect(images.paths.sorted() == ["/var/vm/a.raw", "/var/vm/base.qcow2", "/var/vm/top.qcow2"])
    }

    @Test func networkAndEncryptedDisksAreRefusedWithTheirReason() throws {
        let images = DiskImages(try nodes(), workingDirectory: "/var/vm")
        let reasons = Dictionary(images.refused.map { ($0.file, $0.reason) }, uniquingKeysWith: { a, _ in a })
        #expect(reasons.count == 3)
        #expect(reasons["l.luks"]?.contains("encrypted") == true)
        #expect(reasons["enc.qcow2"]?.contains("encrypted") == true)
        #expect(reasons.first { $0.key.hasPrefix("nbd") }?.value.contains("network") == true)
    }

    @Test(arguments: ["nvme", "vvfat", "something-new"]) func whatIsNoFileIsRefused(driver: String) throws {
        let node = #"[{"drv": "\#(driver)", "file": "/x", "encrypted": false}]"#
        let images = DiskImages(
            try JSONDecoder().decode([BlockNode].self, from: Data(node.utf8)), workingDirectory: "/")
        #expect(images.paths.isEmpty)
        #expect(images.refused.first?.reason.contains(driver) == true)
    }

    /// The same file behind two devices, and a name that QEMU was given as JSON with a flat key.
    @Test func everyFileOnceWhateverItsName() throws {
        let text = #"""
            [{"drv": "file", "file": "/i/a.raw", "encrypted": false},
             {"drv": "file", "file": "file:/i/a.raw", "encrypted": false},
             {"drv": "host_device", "file": "json:{\"driver\": \"raw\", \"file.filename\": \"/dev/vg/x\"}",
              "encrypted": false}]
            """#
        let images = DiskImages(
            try JSONDecoder().decode([BlockNode].self, from: Data(text.utf8)), workingDirectory: "/")
        #expect(images.paths == ["/i/a.raw", "/dev/vg/x"])
    }

    /// What QEMU puts into the guest's memory itself; relative to where QEMU runs.
    @Test func kernelAndInitrdCountToo() {
        let images = DiskImages([], loaded: ["/boot/vmlinuz", "initrd", "/boot/vmlinuz"], workingDirectory: "/vm")
        #expect(images.paths == ["/boot/vmlinuz", "/vm/initrd"])
    }
}
