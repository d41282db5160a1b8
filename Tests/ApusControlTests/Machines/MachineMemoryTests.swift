import ApusControl
import Testing

@Suite("Where a QEMU's RAM is") struct MachineMemoryTests {
    // From /proc/PID/maps of QEMU 7.2 with memory-backend-file, of 10.0 with memory-backend-memfd, and of plain -m 100.
    private static let file = """
        7fb6f0021000-7fb6f4000000 ---p 00000000 00:00 0 
        7fb6f1ffd000-7fb6f7fff000 rw-s 00000000 00:1b 11                         /dev/shm/qemu_back_mem.pc.ram.IA3vGB (deleted)
        7fb6f8021000-7fb6fc000000 ---p 00000000 00:00 0 
        7fb700000000-7fb700021000 rw-p 00000000 00:00 0 
        """
    private static let memfd = """
        7f3f6dbff000-7f3f73fff000 rw-s 00000000 00:01 1298                       /memfd:memory-backend-memfd (deleted)
        """
    private static let plain = """
        55f4c8a00000-55f4c8c00000 r--p 00000000 fe:00 160313                     /usr/bin/qemu-system-x86_64
        7fae80021000-7fae84000000 ---p 00000000 00:00 0 
        7fae85a00000-7fae8be00000 rw-p 00000000 00:00 0 
        7fae94000000-7fae97fff000 rwxp 00000000 00:00 0 
        """
    // HMP `info ramblock` of 10.0 and 7.2.
    private static let blocks10 =
        "              Block Name    PSize              Offset               Used              Total                HVA  RO\r\n"
        + "                  pc.ram    4 KiB  0x0000000000000000 0x0000000006400000 0x0000000006400000 0x00007ff859a00000  rw\r\n"
        + "    /rom@etc/acpi/tables    4 KiB  0x0000000006480000 0x0000000000020000 0x0000000000200000 0x00007ff858c00000  ro\r\n"
    private static let blocks7 =
        "              Block Name    PSize              Offset               Used              Total\r\n"
        + "                  pc.ram    4 KiB  0x0000000000000000 0x0000000006400000 0x0000000006400000\r\n"

    private func locate(
        _ maps: String, _ name: String = "pc.ram", bytes: UInt64, infos: String = "",
        descriptor: String? = "/proc/7/fd/11"
    ) -> MachineMemory.Location {
        MachineMemory.locate(
            blocks: [(name, bytes)], pid: 7, maps: MappedRange.parse(maps), infos: RAMBlockInfo.parse(infos),
            descriptorPath: { _ in descriptor })[name]
    }

    @Test("ramblock tables of both versions") func ramblock() {
        let new = RAMBlockInfo.parse(Self.blocks10)
        #expect(new.map(\.name) == ["pc.ram", "/rom@etc/acpi/tables"])
        #expect(new[0] == RAMBlockInfo(name: "pc.ram", usedBytes: 100 << 20, hostAddress: 0x7ff8_59a0_0000))
        #expect(RAMBlockInfo.parse(Self.blocks7) == [RAMBlockInfo(name: "pc.ram", usedBytes: 100 << 20)])
        #expect(RAMBlockInfo.parse("garbage\n0x1 0x2\n").isEmpty)
    }

    @Test("a shared file or memfd of exactly this length is mapped") func mapped() {
        #expect(locate(Self.file, bytes: 100_671_488) == .mapped(fileDescriptorPath: "/proc/7/fd/11", offset: 0))
        #expect(locate(Self.memfd, "mem0", bytes: 100 << 20) == .mapped(fileDescriptorPath: "/proc/7/fd/11", offset: 0))
        #expect(locate(Self.memfd, "mem0", bytes: 99 << 20) == .stream)
        #expect(locate(Self.memfd, "mem0", bytes: 100 << 20, descriptor: nil) == .stream)
    }

    @Test("private RAM by its size, or by QEMU's own address") func process() {
        #expect(
            locate(Self.plain, bytes: 100 << 20, infos: Self.blocks7) == .process(pid: 7, address: 0x7fae_85a0_0000))
        let two = Self.plain + "\n7fb000000000-7fb006400000 rw-p 00000000 00:00 0 "
        #expect(locate(two, bytes: 100 << 20) == .stream)
        let here = two.replacing("7fb000000000-7fb006400000", with: "7ff859a00000-7ff85fe00000")
        #expect(locate(here, bytes: 100 << 20, infos: Self.blocks10) == .process(pid: 7, address: 0x7ff8_59a0_0000))
        // The address must lie in writable private memory of that size.
        #expect(locate(Self.plain, bytes: 100 << 20, infos: Self.blocks10) == .stream)
        #expect(locate("7f0000000000-7f0000040000 rw-p 00000000 00:00 0 ", "pc.bios", bytes: 0x40000) == .stream)
    }

    @Test("two equal shared files are told apart by QEMU's file names") func numa() {
        let maps = """
            7fb6f0000000-7fb6f4000000 rw-s 00000000 00:1b 11 /dev/shm/qemu_back_mem.ram-node0.IA3vGB (deleted)
            7fb6f4000000-7fb6f8000000 rw-s 00000000 00:1b 12 /dev/shm/qemu_back_mem.ram-node1.XY3vGB (deleted)
            """
        #expect(
            locate(maps, "/objects/ram-node1", bytes: 64 << 20, descriptor: "/proc/7/fd/12")
                == .mapped(fileDescriptorPath: "/proc/7/fd/12", offset: 0))
        #expect(locate(maps, "other", bytes: 64 << 20) == .stream)
        #expect(
            locate("7f0000000000-7f0000001000 rw-s 00000000 00:1b 11 /dev/shm/ring", "small", bytes: 4096) == .stream)
    }

    @Test("neighbours of one file are one range, strange lines are left out") func ranges() {
        let ranges = MappedRange.parse(
            """
            7fb6f0000000-7fb6f1000000 rw-s 00000000 00:1b 11 /dev/shm/a b (deleted)
            7fb6f1000000-7fb6f4000000 rw-s 01000000 00:1b 11 /dev/shm/a b (deleted)
            not a line
            7fb6f4000000-7fb6f3000000 rw-s 01000000 00:1b 11 backwards
            7fb6f5000000-7fb6f6000000 r--s 01000000 1f:1b 11
            """)
        #expect(ranges.count == 2)
        #expect(ranges[0].length == 64 << 20 && ranges[0].path == "/dev/shm/a b (deleted)")
        #expect(ranges[1].deviceMajor == 0x1f && !ranges[1].writable)
    }
}
