/// One line of `/proc/PID/maps`, or several that continue each other.
public struct MappedRange: Sendable, Equatable {
    public var start: UInt64
    public var end: UInt64
    public let readable: Bool
    public let writable: Bool
    public let shared: Bool
    /// Where in the file the range begins; 0 for anonymous memory.
    public let offset: UInt64
    public let deviceMajor: UInt64
    public let deviceMinor: UInt64
    /// 0 for anonymous memory.
    public let inode: UInt64
    public let path: String

    public var length: UInt64 { end - start }
    public var isAnonymous: Bool { inode == 0 && path.isEmpty }

    /// The text of `/proc/PID/maps`; lines of another shape are left out. Neighbours of one file that continue each
    /// other are joined: `madvise` and `mprotect` split them.
    public static func parse(_ text: String) -> [MappedRange] {
        var ranges: [MappedRange] = []
        for line in text.split(separator: "\n") {
            guard let range = MappedRange(line: line) else { continue }
            if let last = ranges.last, range.continues(last) {
                ranges[ranges.count - 1].end = range.end
            } else {
                ranges.append(range)
            }
        }
        return ranges
    }

    //   7fb6f1ffd000-7fb6f7fff000 rw-s 00000000 00:1b 11      /dev/shm/qemu_back_mem.pc.ram.IA3vGB (deleted)
    init?(line: Substring) {
        let fields = line.split(separator: " ", maxSplits: 5)
        guard fields.count >= 5 else { return nil }
        let addresses = fields[0].split(separator: "-").compactMap { UInt64($0, radix: 16) }
        let mode = Array(fields[1].utf8)
        let device = fields[3].split(separator: ":").compactMap { UInt64($0, radix: 16) }
        guard addresses.count == 2, addresses[0] < addresses[1], mode.count == 4, device.count == 2,
            let offset = UInt64(fields[2], radix: 16), let inode = UInt64(fields[4])
        else { return nil }
        start = addresses[0]
        end = addresses[1]
        readable = mode[0] == UInt8(ascii: "r")
        writable = mode[1] == UInt8(ascii: "w")
        shared = mode[3] == UInt8(ascii: "s")
        self.offset = offset
        deviceMajor = device[0]
        deviceMinor = device[1]
        self.inode = inode
        path = fields.count > 5 ? String(fields[5].drop { $0 == " " }) : ""
    }

    private func continues(_ before: MappedRange) -> Bool {
        // Anonymous neighbours are not joined: they are different allocations more often than one.
        !isAnonymous && before.end == start && before.inode == inode && before.deviceMajor == deviceMajor
            && before.deviceMinor == deviceMinor && before.shared == shared && before.writable == writable
            && before.offset + before.length == offset
    }
}

/// HMP `info ramblock`: names, lengths, and from QEMU 8.1 host addresses.
public struct RAMBlockInfo: Sendable, Equatable {
    public let name: String
    public let usedBytes: UInt64
    /// nil: this QEMU does not print it.
    public let hostAddress: UInt64?

    public init(name: String, usedBytes: UInt64, hostAddress: UInt64? = nil) {
        self.name = name
        self.usedBytes = usedBytes
        self.hostAddress = hostAddress
    }

    //               Block Name    PSize              Offset               Used              Total                HVA  RO
    //                   pc.ram    4 KiB  0x0000000000000000 0x0000000006400000 0x0000000006400000 0x00007ff859a00000  rw
    public static func parse(_ text: String) -> [RAMBlockInfo] {
        text.split(whereSeparator: \.isNewline).compactMap { line in
            let words = line.split(separator: " ")
            // The name may hold spaces; the page size ("4 KiB") is what comes before the numbers.
            guard let first = words.firstIndex(where: { $0.hasPrefix("0x") }), first >= 3, words.count >= first + 3,
                let used = UInt64(words[first + 1].dropFirst(2), radix: 16)
            else { return nil }
            let address: UInt64? =
                words.count > first + 3 && words[first + 3].hasPrefix("0x")
                ? UInt64(words[first + 3].dropFirst(2), radix: 16) : nil
            return RAMBlockInfo(
                name: words[..<(first - 2)].joined(separator: " "), usedBytes: used, hostAddress: address)
        }
    }
}
