import Testing

@testable import ApusControl

@Suite("Who may be moved by the direct port") struct DirectAccessTests {
    private static let tree =
        "bus: main-system-bus\n  dev: q35-pcihost, id \"\"\n    dev: virtio-net-pci, id \"net0\"\n"

    @Test(
        "a network back-end that writes past QEMU is seen, though its device is an ordinary one",
        arguments: [
            (" \\ n0: index=0,type=vhost-user,chardev=c0", true), (" \\ n0: index=0,type=vhost-vdpa,fd=12", true),
            (" \\ n0: index=0,type=user,net=10.0.2.0", false), (" \\ n0: index=0,type=tap,vhost=on", false),
        ])
    func network(text: String, isForeign: Bool) {
        #expect((DirectAccess.foreignWriter(devices: Self.tree, network: text) != nil) == isForeign)
    }

    @Test(
        "devices that write past QEMU are seen",
        arguments: ["vfio-pci", "vhost-user-blk-pci", "ivshmem-plain", "virtio-mem-pci"])
    func device(name: String) {
        let tree = Self.tree + "    dev: \(name), id \"x\"\n"
        #expect(DirectAccess.foreignWriter(devices: tree, network: "") != nil)
        #expect(DirectAccess.foreignWriter(devices: Self.tree, network: "") == nil)
    }

    @Test("what is offered is understood") func offered() {
        let access = DirectAccess(
            blocks: [
                .init(
                    name: "pc ram", byteCount: 8192, address: 0, path: "", fileOffset: 0, isSentByQemu: false,
                    isRebased: false)
            ], usesDirectIO: false)
        #expect(DirectAccess.parse(offered: access.offered)?.first.map { $0 == ("pc ram", 8192) } == true)
        for bad in ["", "pc.ram", "pc.ram x", "pc.ram -1"] { #expect(DirectAccess.parse(offered: bad) == nil) }
    }
}
