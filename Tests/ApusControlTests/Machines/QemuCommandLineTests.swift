import ApusAPI
import ApusControl
import Testing

@Suite("QEMU command lines") struct QemuCommandLineTests {
    @Test("reading and writing gives the same command")
    func roundTrip() throws {
        let command = [
            "qemu-system-x86_64", "-M", "q35,accel=tcg", "-m", "size=1G,slots=2,maxmem=4G", "-nodefaults", "-S",
            "-drive", "file=a,,b.img,if=none,id=d", "-append", "console=ttyS0 -x", "-snapshot", "disk.img",
        ]
        let line = try QemuCommandLine(command)
        #expect(line.command == command)
        #expect(line.launcher == ["qemu-system-x86_64"])
        #expect(line.values(of: "append") == ["console=ttyS0 -x"])
        #expect(line.arguments.last == .image("disk.img"))
    }

    @Test("two dashes are one") func dashes() throws {
        let line = try QemuCommandLine(["qemu-kvm", "--m", "512", "--nographic"])
        #expect(try line.memoryBytes() == 512 << 20)
        #expect(line.command == ["qemu-kvm", "-m", "512", "-nographic"])
    }

    @Test(
        "words before QEMU are its launcher",
        arguments: [
            ["ip", "netns", "exec", "a", "qemu-system-x86_64"], ["taskset", "-c", "1", "/usr/bin/qemu-system-x86_64"],
            ["/opt/ld.so", "--library-path", "/opt/lib", "/opt/bin/qemu-system-x86_64"], ["/opt/my-launcher"],
        ])
    func launcher(words: [String]) throws {
        let line = try QemuCommandLine(words + ["-m", "1G"])
        #expect(line.launcher == words)
        #expect(try line.memoryBytes() == 1 << 30)
    }

    @Test("what cannot be a command") func malformed() {
        #expect(throws: Problem.self) { try QemuCommandLine([]) }
        #expect(throws: Problem.self) { try QemuCommandLine(["qemu-system-x86_64", "-m"]) }
        #expect(throws: Problem.self) { try QemuCommandLine(["qemu-system-x86_64", "-m", "100x"]).memoryBytes() }
    }

    // Every size here was given to QEMU 7.2, which then reported these bytes as base-memory (0: it refused).
    @Test(
        "sizes as QEMU takes them",
        arguments: [
            ("0x40", 67_108_864), ("100", 104_857_600), ("100K", 106_496), ("3M", 3_145_728), ("1.5", 0),
            ("1.5m", 1_572_864),
            ("64b", 8192), ("100663297b", 100_671_488), ("100000k", 102_400_000), ("0.5G", 536_870_912), ("1e2", 0),
            ("1.5G", 1_610_612_736), ("98312K", 100_671_488), ("100x", 0), ("", 0), ("-5", 0), ("99999999999T", 0),
        ])
    func sizes(text: String, bytes: UInt64) {
        #expect(QemuSize.memoryBytes(text) == (bytes == 0 ? nil : bytes))
    }

    @Test("-machine and -M are merged, the last wins") func machineOptions() throws {
        var line = try QemuCommandLine(["qemu-system-x86_64", "-M", "q35,accel=tcg", "-machine", "type=pc,usb=off"])
        #expect(line.machineType == "pc")
        #expect(line.machineOptions["accel"] == "tcg")
        line.setMachineOption("type", "pc-q35-7.2")
        #expect(line.command == ["qemu-system-x86_64", "-M", "pc-q35-7.2,accel=tcg", "-machine", "usb=off"])
        line.setMachineOption("memory-backend", "pc.ram")
        #expect(line.values(of: "M") == ["pc-q35-7.2,accel=tcg,memory-backend=pc.ram"])
        var plain = try QemuCommandLine(["qemu-system-x86_64", "-m", "64"])
        plain.setMachineOption("type", "pc-i440fx-7.2")
        #expect(plain.command == ["qemu-system-x86_64", "-m", "64", "-machine", "pc-i440fx-7.2"])
    }

    @Test(
        "commands that choose their memory",
        arguments: [
            (["-numa", "node,memdev=a"], true), (["-mem-path", "/hugepages"], true),
            (["-object", "memory-backend-memfd,id=m,size=1G"], true),
            (["-object", #"{"qom-type":"memory-backend-ram","id":"m","size":1}"#], true),
            (["-object", "qom-type=memory-backend-file,id=m"], true), (["-machine", "q35,memory-backend=m"], true),
            (["-machine", "memory.size=1G"], true), (["-object", "rng-random,id=r"], false), (["-m", "1G"], false),
            (["-append", "-numa"], false),
        ])
    func choosesMemory(arguments: [String], chooses: Bool) throws {
        #expect(try QemuCommandLine(["qemu-system-x86_64"] + arguments).choosesMemory == chooses)
    }

    @Test("the adopted monitor is taken out, others stay") func monitors() throws {
        var line = try QemuCommandLine([
            "qemu-system-x86_64", "-qmp", "unix:/run/a.sock,server=on,wait=off", "-qmp",
            "unix:/run/b.sock,server,nowait",
            "-chardev", "socket,id=mon0,path=/run/a.sock,server=on,wait=off", "-mon", "chardev=mon0,mode=control",
            "-chardev", "socket,id=other,path=/run/c.sock", "-mon", "other", "-S",
        ])
        line.removeMonitor(at: "/run/a.sock")
        #expect(
            line.command == [
                "qemu-system-x86_64", "-qmp", "unix:/run/b.sock,server,nowait", "-chardev",
                "socket,id=other,path=/run/c.sock", "-mon", "other", "-S",
            ])
    }

    @Test("commas in values survive") func commas() {
        let list = KeyValueList("file=a,,b,ro=on,flag", implied: "x")
        #expect(list["file"] == "a,b")
        #expect(list.text(implied: "x") == "file=a,,b,ro=on,flag")
        #expect(KeyValueList("a=b=c", implied: "x")["a"] == "b=c")
    }

    @Test(
        "names",
        arguments: [
            ("web-1", true), ("a.b_c", true), ("", false), ("-a", false), ("..", false), ("a/b", false), ("ä", false),
            (String(repeating: "n", count: 49), false),
        ])
    func names(name: String, good: Bool) {
        #expect((try? MachineDefinition.check(name: name)) != nil || !good)
        if !good { #expect(throws: Problem.self) { try MachineDefinition.check(name: name) } }
    }
}

@Suite("What is started") struct LaunchPlanTests {
    private let place = LaunchPlan.Place(
        runDirectory: "/run/apus/vms/web", ramDirectory: "/dev/shm", ramRoomBytes: 1 << 30, defaultRAMID: "pc.ram")

    @Test("run adds name, monitor and shared RAM of exactly QEMU's size") func run() throws {
        let plan = try LaunchPlan(
            name: "web", command: ["qemu-system-x86_64", "-M", "q35", "-m", "98312K", "-serial", "file:{run}/tty.log"],
            ramBytes: 98312 << 10, purpose: .run, place: place)
        #expect(
            plan.command == [
                "qemu-system-x86_64", "-M", "q35,memory-backend=pc.ram", "-m", "98312K", "-serial",
                "file:/run/apus/vms/web/tty.log", "-name", "web", "-object",
                "memory-backend-file,id=pc.ram,size=100671488,mem-path=/dev/shm,share=on,prealloc=off", "-qmp",
                "unix:/run/apus/vms/web/qmp.sock,server=on,wait=off",
            ])
        #expect(plan.sharesRAM && plan.notes.isEmpty)
    }

    @Test("incoming has the versioned type and waits paused") func incoming() throws {
        let plan = try LaunchPlan(
            name: "web",
            command: [
                "qemu-system-x86_64", "-machine", "q35", "-m", "512", "-S", "-incoming", "tcp:0:1", "-daemonize",
                "-pidfile", "x", "-name", "guest=other", "-mem-prealloc",
            ],
            ramBytes: 512 << 20, purpose: .incoming(machineType: "pc-q35-7.2"), place: place)
        #expect(
            plan.command == [
                "qemu-system-x86_64", "-machine", "pc-q35-7.2,memory-backend=pc.ram", "-m", "512", "-name",
                "guest=other", "-mem-prealloc", "-object",
                "memory-backend-file,id=pc.ram,size=536870912,mem-path=/dev/shm,share=on", "-qmp",
                "unix:/run/apus/vms/web/qmp.sock,server=on,wait=off", "-incoming", "defer", "-S",
            ])
    }

    @Test("RAM stays as it is, with a note, without room or backend") func asItIs() throws {
        let command = ["qemu-system-x86_64", "-M", "q35", "-m", "2G"]
        let small = try LaunchPlan(name: "web", command: command, ramBytes: 2 << 30, purpose: .run, place: place)
        #expect(!small.sharesRAM && !small.command.contains("-object"))
        #expect(
            small.notes == ["Guest RAM stays private to QEMU: /dev/shm has room for 1024 MiB, the VM has 2048 MiB."])
        var without = place
        without.defaultRAMID = nil
        #expect(
            try LaunchPlan(name: "web", command: command, ramBytes: 1 << 20, purpose: .run, place: without).notes.count
                == 1)
        let chosen = [
            "qemu-system-x86_64", "-m", "64", "-object", "memory-backend-ram,id=m,size=64M", "-M",
            "q35,memory-backend=m",
        ]
        let plan = try LaunchPlan(name: "web", command: chosen, ramBytes: 64 << 20, purpose: .run, place: place)
        #expect(Array(plan.command.prefix(chosen.count)) == chosen && plan.notes.isEmpty)
    }

    @Test("RAM that is fetched later is owned, whatever the command wants") func owned() throws {
        func plan(_ object: String, _ place: LaunchPlan.Place) throws -> LaunchPlan {
            try LaunchPlan(
                name: "web",
                command: ["qemu-system-x86_64", "-m", "64", "-object", object, "-machine", "q35,memory-backend=m"],
                ramBytes: 64 << 20, purpose: .incoming(machineType: "pc-q35-7.2", owningMemory: true), place: place)
        }
        let words = try plan("memory-backend-ram,id=m,size=64M,prealloc=on,share=off", place)
        #expect(words.command[4] == "memory-backend-file,id=m,size=64M,prealloc=on,share=on,mem-path=/dev/shm")
        #expect(words.sharesRAM)
        let json = try plan(#"{"qom-type":"memory-backend-ram","id":"m","size":67108864,"host-nodes":[0]}"#, place)
        #expect(
            json.command[4]
                == #"{"host-nodes":[0],"id":"m","mem-path":"/dev/shm","qom-type":"memory-backend-file","share":true,"size":67108864}"#
        )
        let memfd = "memory-backend-memfd,id=m,size=64M"
        #expect(try plan(memfd, place).command[4] == memfd)
        var full = place
        full.ramRoomBytes = 1 << 20
        #expect(try plan("memory-backend-ram,id=m,size=64M", full).command[4].hasPrefix("memory-backend-ram"))
    }

    @Test("refused", arguments: [("-daemonize", "daemonize-refused"), ("-incoming", "incoming-refused")])
    func refused(option: String, code: String) {
        let error = #expect(throws: Problem.self) {
            try LaunchPlan(
                name: "web",
                command: ["qemu-system-x86_64", "-m", "64", option] + (option == "-incoming" ? ["defer"] : []),
                ramBytes: 64 << 20, purpose: .run, place: place)
        }
        #expect(error?.code == code)
    }

    @Test("a socket path beyond the kernel's limit") func longPath() {
        var deep = place
        deep.runDirectory = "/" + String(repeating: "d", count: 100)
        let error = #expect(throws: Problem.self) {
            try LaunchPlan(
                name: "web", command: ["qemu-system-x86_64", "-m", "64"], ramBytes: 1, purpose: .run, place: deep)
        }
        #expect(error?.code == "socket-path-too-long")
    }
}
