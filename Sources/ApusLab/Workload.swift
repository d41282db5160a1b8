/// What a proving guest does, and how QEMU starts it.
public struct Workload: Sendable, Equatable, Codable {
    public enum Pattern: String, Sendable, Codable, CaseIterable {
        case incompressible, compressible, few, readmostly, idle, redis
        /// Pages are visited in an order, nine in ten only read.
        case scan, strided, zipf, random, phases
    }

    /// Where QEMU keeps guest RAM.
    public enum RAM: String, Sendable, Codable, CaseIterable {
        /// `-m` alone: anonymous memory of a QEMU that runs by itself, `file` when `apus vm run` starts it.
        case plain
        /// Anonymous memory, under Apus too.
        case anonymous
        /// A shared memfd.
        case memfd
        /// A shared, unlinked file on tmpfs, which `apus vm run` makes of `plain`.
        case file
    }

    public var name: String
    public var pattern: Pattern
    public var regionMiB = 128
    /// The part of the region that is rewritten at random.
    public var hotMiB = 32
    /// Page writes (`redis`: requests; orders: visits) per second; 0: as fast as the guest can.
    public var pagesPerS = 1500
    /// Per cent of the CPU that checking may take; nil: what suits the pattern.
    public var checkShare: Int?
    /// `few`: 64-byte lines in which a write changes one word, 1 to 64.
    public var lines = 2
    /// Per mille of the versions of a page that are all zero; such a write changes the whole page, whatever the pattern.
    public var zeroPerMille = 10
    public var seed = 1
    /// Not a multiple of 256 KiB: QEMU 7.2 under TCG loses dirty pages otherwise, with nobody else in play.
    public var memoryKiB = 512 * 1024 + 8
    public var ram = RAM.plain
    /// Read from a read-only virtio disk into the guest's page cache, and proved with the rest; 0: no disk.
    public var pageCacheMiB = 0
    /// Where its image is; nil: in the cache folder.
    public var pageCacheImage: String?
    /// `raw` or `qcow2`.
    public var pageCacheFormat = "raw"
    /// Image of a read-only virtio disk that the guest reads past its page cache all the time, and QEMU past the host's
    /// (`cache=none`), so that it writes straight into guest memory; see ``DirectDisk``. Not together with `pageCacheMiB`.
    public var directDisk: String?

    public init(name: String, pattern: Pattern) {
        self.name = name
        self.pattern = pattern
    }

    /// QEMU's arguments. `{run}` stands for the VM's runtime folder: the text `{run}` itself when Apus starts the VM.
    /// The machine type is a version's, so that every QEMU since 7.2 can take the guest over.
    public func arguments(run: String, image: GuestImage, accelerator: Accelerator) -> [String] {
        var words = [
            "-name", "prover,debug-threads=on", "-M", "pc-q35-7.2", "-accel", accelerator.rawValue,
            "-m", "\(memoryKiB)K", "-smp", "1", "-nodefaults", "-no-user-config", "-display", "none",
            "-kernel", image.kernel, "-initrd", pattern == .redis ? image.redisInitrd : image.initrd,
            "-append", kernelCommandLine,
            "-chardev", "socket,id=console,path=\(run)/console.sock,server=on,wait=off", "-serial", "chardev:console",
        ]
        if accelerator == .kvm { words += ["-cpu", "host"] }
        if let memoryBackend {
            words += ["-object", memoryBackend, "-machine", "memory-backend=pc.ram"]
        }
        if let disk {
            words += [
                "-drive", "if=none,id=disk,file=\(disk.path),format=\(pageCacheFormat),readonly=on,file.locking=off",
                "-device", "virtio-blk-pci,drive=disk",
            ]
        }
        if let directDisk {
            words += [
                "-drive",
                "if=none,id=direct,file=\(directDisk),format=raw,readonly=on,cache=none,file.locking=off",
                "-device", "virtio-blk-pci,drive=direct",
            ]
        }
        return words
    }

    var disk: PageCacheDisk? {
        pageCacheMiB > 0 ? PageCacheDisk(mebibytes: pageCacheMiB, path: pageCacheImage) : nil
    }

    private var memoryBackend: String? {
        let common = "id=pc.ram,size=\(memoryKiB)K"
        return switch ram {
        case .plain: nil
        case .anonymous: "memory-backend-ram,\(common)"
        case .memfd: "memory-backend-memfd,\(common),share=on"
        // A directory: QEMU makes a file in it and unlinks it at once.
        case .file: "memory-backend-file,\(common),mem-path=/dev/shm,share=on"
        }
    }

    private var kernelCommandLine: String {
        var words = [
            "console=ttyS0", "quiet", "panic=-1", "tsc=reliable", "mitigations=off",
            "prove.pattern=\(pattern.rawValue)",
            "prove.region=\(regionMiB)M", "prove.hot=\(hotMiB)M", "prove.rate=\(pagesPerS)", "prove.seed=\(seed)",
            "prove.lines=\(lines)", "prove.zero=\(zeroPerMille)",
        ]
        if let checkShare { words.append("prove.share=\(checkShare)") }
        if pageCacheMiB > 0 { words.append("prove.disk=/dev/vda") }
        if directDisk != nil { words.append("prove.direct=/dev/vda") }
        return words.joined(separator: " ")
    }
}
