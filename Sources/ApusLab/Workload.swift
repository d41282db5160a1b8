/// What a proving guest does, and how QEMU starts it.
public struct Workload: Sendable, Equatable, Codable {
    public enum Pattern: String, Sendable, Codable, CaseIterable {
        case incompressible, compressible, few, readmostly, idle
    }

    public var name: String
    public var pattern: Pattern
    public var regionMiB = 128
    /// The part of the region that is rewritten at random.
    public var hotMiB = 32
    /// Page writes per second; 0: as fast as the guest can.
    public var pagesPerS = 1500
    /// Per cent of the CPU that checking may take; nil: what suits the pattern.
    public var checkShare: Int?
    /// `few`: 64-byte lines in which a write changes one word.
    public var lines = 2
    public var seed = 1
    /// Not a multiple of 256 KiB: QEMU 7.2 under TCG loses dirty pages otherwise, with nobody else in play.
    public var memoryKiB = 512 * 1024 + 8
    /// RAM in a shared memfd, which a receiver can map, instead of QEMU's own anonymous memory.
    public var sharesMemory = false
    /// An image file given as a read-only virtio disk and read into the guest's page cache.
    public var disk: String?

    public init(name: String, pattern: Pattern) {
        self.name = name
        self.pattern = pattern
    }

    /// The guest as it is used in comparisons, one per pattern.
    public static let standard: [Workload] = Pattern.allCases.map { pattern in
        var workload = Workload(name: pattern.rawValue, pattern: pattern)
        switch pattern {
        case .idle: workload.pagesPerS = 0
        case .readmostly:
            workload.hotMiB = 4
            workload.pagesPerS = 100
        case .incompressible, .compressible, .few: break
        }
        return workload
    }

    public static func named(_ name: String) -> Workload? { standard.first { $0.name == name } }

    /// QEMU's arguments. `{run}` stands for the VM's runtime folder: the text `{run}` itself when Apus starts the VM.
    /// The machine type is a version's, so that every QEMU since 7.2 can take the guest over.
    public func arguments(run: String, image: GuestImage, accelerator: Accelerator) -> [String] {
        var words = [
            "-name", "prover,debug-threads=on", "-M", "pc-q35-7.2", "-accel", accelerator.rawValue,
            "-m", "\(memoryKiB)K", "-smp", "1", "-nodefaults", "-no-user-config", "-display", "none",
            "-kernel", image.kernel, "-initrd", image.initrd, "-append", kernelCommandLine,
            "-chardev", "socket,id=console,path=\(run)/console.sock,server=on,wait=off", "-serial", "chardev:console",
        ]
        if accelerator == .kvm { words += ["-cpu", "host"] }
        if sharesMemory {
            words += [
                "-object", "memory-backend-memfd,id=pc.ram,size=\(memoryKiB)K,share=on",
                "-machine", "memory-backend=pc.ram",
            ]
        }
        if let disk {
            words += [
                "-drive", "if=none,id=disk,file=\(disk),format=raw,readonly=on,file.locking=off",
                "-device", "virtio-blk-pci,drive=disk",
            ]
        }
        return words
    }

    private var kernelCommandLine: String {
        var words = [
            "console=ttyS0", "quiet", "panic=-1", "tsc=reliable", "mitigations=off",
            "prove.pattern=\(pattern.rawValue)",
            "prove.region=\(regionMiB)M", "prove.hot=\(hotMiB)M", "prove.rate=\(pagesPerS)", "prove.seed=\(seed)",
            "prove.lines=\(lines)",
        ]
        if let checkShare { words.append("prove.share=\(checkShare)") }
        if disk != nil { words.append("prove.disk=/dev/vda") }
        return words.joined(separator: " ")
    }
}
