import Testing

@testable import ApusLab

@Suite struct WorkloadTests {
    private let image = GuestImage(kernel: "/k", initrd: "/i")

    private func words(_ workload: Workload) -> [String] {
        workload.arguments(run: "{run}", image: image, accelerator: .tcg)
    }

    private func value(of option: String, in words: [String]) -> String? {
        words.firstIndex(of: option).flatMap { words.indices.contains($0 + 1) ? words[$0 + 1] : nil }
    }

    @Test func everyNameIsAWorkload() throws {
        for name in Workload.names {
            let concrete = name.replacing("-N", with: "-7")
            #expect(try #require(Workload.named(concrete)).name == concrete)
        }
        #expect(Set(Workload.names).count == Workload.names.count)
    }

    @Test(arguments: ["", "nothing", "lines-", "lines-0", "lines-65", "lines-x", "lines--1", "lines-N"])
    func otherNamesAreNot(_ name: String) { #expect(Workload.named(name) == nil) }

    @Test func changedLinesAreAllThatChanges() throws {
        let workload = try #require(Workload.named("lines-64"))
        let line = try #require(value(of: "-append", in: words(workload)))
        for word in ["prove.lines=64", "prove.zero=0", "prove.rate=10000", "prove.hot=64M", "prove.pattern=few"] {
            #expect(line.split(separator: " ").contains(Substring(word)), "\(word)")
        }
        var same = try #require(Workload.named("few-bytes"))
        same.name = "lines-1"
        #expect(same == Workload.named("lines-1"))
    }

    @Test func onlyRedisBootsTheLargeImage() throws {
        for name in Workload.names.map({ $0.replacing("-N", with: "-2") }) {
            let initrd = value(of: "-initrd", in: words(try #require(Workload.named(name))))
            #expect(initrd == (name == "redis" ? "/i-redis" : "/i"), "\(name)")
        }
    }

    @Test(arguments: [
        (Workload.RAM.plain, nil), (.anonymous, "memory-backend-ram,id=pc.ram,size=524296K"),
        (.memfd, "memory-backend-memfd,id=pc.ram,size=524296K,share=on"),
        (.file, "memory-backend-file,id=pc.ram,size=524296K,mem-path=/dev/shm,share=on"),
    ])
    func ramIsWhereItIsAskedFor(_ ram: Workload.RAM, _ object: String?) throws {
        var workload = try #require(Workload.named("idle"))
        workload.ram = ram
        #expect(value(of: "-object", in: words(workload)) == object)
        #expect(words(workload).contains("memory-backend=pc.ram") == (object != nil))
    }

    /// QEMU 7.2 under TCG loses dirty pages of guests whose RAM is a multiple of it.
    @Test func noRAMIsAMultipleOf256KiB() {
        for name in Workload.names { #expect((Workload.named(name)?.memoryKiB ?? 1) % 256 != 0) }
    }

    @Test func theDiskIsTheSameEveryTimeAndOfEveryKind() {
        let extents = (0..<8).map(PageCacheDisk.content(ofExtent:))
        #expect(extents.allSatisfy { $0.count == 65_536 })
        #expect(extents == (0..<8).map(PageCacheDisk.content(ofExtent:)))
        #expect(Set(extents).count == 7, "the zeros of both rounds are the only ones that are alike")
        #expect(extents[3].allSatisfy { $0 == 0 })
        let letters = UInt8(ascii: "a")...UInt8(ascii: "z")
        #expect(extents[0].allSatisfy(letters.contains))
        #expect(!extents[2].allSatisfy(letters.contains))
    }
}

@Suite struct PeerNameTests {
    private func apus(_ name: String) -> ApusPeer? { ApusPeer.named(name, program: "apus", qemu: "q") }

    @Test(arguments: [
        ("apus", []), ("apus-stream", ["--port", "stream", "--mode", "plain"]),
        ("apus-direct", ["--port", "direct", "--mode", "plain"]), ("apus-auto", ["--port", "auto", "--mode", "plain"]),
        ("apus-dsm", ["--mode", "dsm"]), ("apus-plain", ["--mode", "plain"]),
        ("apus-hybrid", ["--mode", "hybrid"]), ("apus-postcopy", ["--mode", "postcopy"]),
        ("apus-dsm-stream", ["--port", "stream", "--mode", "dsm"]),
        ("apus-dsm-direct", ["--port", "direct", "--mode", "dsm"]),
        ("apus-dsm-stream-nohold", ["--port", "stream", "--mode", "dsm"]),
        ("apus-postcopy-sweep", ["--mode", "postcopy"]), ("apus-postcopy-oracle", ["--mode", "postcopy"]),
        ("apus-postcopy-trend-faithful-nohold", ["--mode", "postcopy"]),
        ("apus-direct-ref", ["--port", "direct", "--mode", "plain"]), ("apus-ref", []),
    ])
    func aNameChoosesPortAndMode(_ name: String, _ options: [String]) throws {
        let peer = try #require(apus(name))
        #expect(peer.migrateOptions == ["--max-downtime", "300", "--timeout", "150"] + options)
        #expect(peer.label == name)
    }

    @Test(arguments: [
        "", "plain", "apus-", "apus-fast", "apus-direct-dsm", "apus-dsm-direct-x", "apus-nohold-direct", "qemu-direct",
        "apus-postcopy-faithful-trend",
    ])
    func otherNamesAreNoPeers(_ name: String) { #expect(apus(name) == nil) }

    /// What the laboratory switches off unless it is asked for.
    private let off = "content:\n  disks: false\n  storeMiB: 0\n"

    @Test func lanesAreConfiguredAndNamed() throws {
        var peer = try #require(apus("apus-dsm-direct"))
        #expect(peer.configuration == off)
        peer.lanes = 4
        #expect(peer.configuration == "link:\n  lanes: 4\n" + off)
        #expect(peer.label == "apus-dsm-direct 4 lanes")
        peer.lanes = 1
        #expect(peer.label == "apus-dsm-direct 1 lane")
        peer.qemuVersion = "10.0"
        #expect(peer.label == "apus-dsm-direct on QEMU 10.0 1 lane")
        peer.holdsHotPages = false
        peer.lineTableMiB = 2
        #expect(peer.configuration == "link:\n  lanes: 1\nmigrate:\n  holdHotPages: false\n  lineTableMiB: 2\n" + off)
        peer.refers = true
        #expect(peer.configuration.contains("content") == false)
    }

    @Test func foreseeingIsConfigured() throws {
        let plain = try #require(apus("apus-postcopy-sweep"))
        #expect(plain.configuration == "migrate:\n  prefetch: sweep\n  recordMs: 0.0\n" + off)
        let faithful = try #require(apus("apus-postcopy-recorded-faithful"))
        #expect(faithful.configuration == "migrate:\n  prefetch: recorded\n  sendWhileRecording: false\n" + off)
    }

    @Test(arguments: [(nil, 32), (1, 1), (3, 2), (256, 256)])
    func theDeltaCacheIsAPowerOfTwo(_ asked: Int?, _ mebibytes: UInt64) throws {
        var plain = PlainQemu(program: "q", version: "7.2", mode: .xbzrle)
        plain.xbzrleCacheMiB = asked
        #expect(plain.xbzrleCacheBytes(of: try #require(Workload.named("idle"))) == mebibytes << 20)
    }
}
