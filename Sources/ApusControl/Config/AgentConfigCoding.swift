public import ApusAPI
internal import ApusMemory

/// Every key may be left out; a key that does not exist is an error, because it is a typing mistake.
extension AgentConfig {
    fileprivate struct Key: CodingKey {
        let stringValue: String
        var intValue: Int? { nil }
        init(stringValue: String) { self.stringValue = stringValue }
        init?(intValue: Int) { nil }
    }

    /// Reads keys and remembers which; the rest must be none.
    fileprivate struct Reader {
        let box: KeyedDecodingContainer<Key>
        let path: String
        var known: Set<String> = []

        init(_ decoder: any Decoder, path: String) throws {
            box = try decoder.container(keyedBy: Key.self)
            self.path = path
        }

        mutating func take<T: Decodable>(_ name: String, into value: inout T) throws {
            known.insert(name)
            if let found = try box.decodeIfPresent(T.self, forKey: Key(stringValue: name)) { value = found }
        }

        mutating func take<T: Decodable>(_ name: String, into value: inout T?) throws {
            known.insert(name)
            value = try box.decodeIfPresent(T.self, forKey: Key(stringValue: name))
        }

        func finish() throws {
            for key in box.allKeys.map(\.stringValue).sorted() where !known.contains(key) {
                throw Problem(
                    "config-key-unknown", "The configuration has no key \"\(path)\(key)\".",
                    advice: "Known here: \(known.sorted().joined(separator: ", ")).")
            }
        }
    }

    public init(from decoder: any Decoder) throws {
        self.init()
        var reader = try Reader(decoder, path: "")
        try reader.take("stateDirectory", into: &stateDirectory)
        try reader.take("runDirectory", into: &runDirectory)
        try reader.take("api", into: &api)
        try reader.take("link", into: &link)
        try reader.take("migrate", into: &migrate)
        try reader.take("content", into: &content)
        try reader.take("ramDirectory", into: &ramDirectory)
        try reader.take("hosts", into: &hosts)
        try reader.take("logFormat", into: &logFormat)
        try reader.take("logLevel", into: &logLevel)
        try reader.finish()
    }
}

extension AgentConfig.API {
    public init(from decoder: any Decoder) throws {
        self.init()
        var reader = try AgentConfig.reader(decoder, "api.")
        try reader.take("socket", into: &socket)
        try reader.take("listen", into: &listen)
        try reader.finish()
    }
}

extension AgentConfig.Link {
    public init(from decoder: any Decoder) throws {
        self.init()
        var reader = try AgentConfig.reader(decoder, "link.")
        try reader.take("listen", into: &listen)
        try reader.take("lanes", into: &lanes)
        try reader.take("insecure", into: &insecure)
        try reader.take("reconnectS", into: &reconnectS)
        try reader.take("sourceLossS", into: &sourceLossS)
        try reader.finish()
    }
}

extension AgentConfig.Migrate {
    public init(from decoder: any Decoder) throws {
        self.init()
        var reader = try AgentConfig.reader(decoder, "migrate.")
        try reader.take("lineTableMiB", into: &lineTableMiB)
        try reader.take("holdHotPages", into: &holdHotPages)
        try reader.take("recordMs", into: &recordMs)
        try reader.take("sendWhileRecording", into: &sendWhileRecording)
        try reader.take("prefetch", into: &prefetch)
        try reader.take("pushOrderFile", into: &pushOrderFile)
        try reader.take("allow", into: &allow)
        try reader.take("patienceS", into: &patienceS)
        try reader.finish()
    }
}

extension AgentConfig.Content {
    public init(from decoder: any Decoder) throws {
        self.init()
        var reader = try AgentConfig.reader(decoder, "content.")
        try reader.take("disks", into: &disks)
        try reader.take("indexMiB", into: &indexMiB)
        try reader.take("indexMBps", into: &indexMBps)
        try reader.take("storeMiB", into: &storeMiB)
        try reader.take("keepS", into: &keepS)
        try reader.take("keyFile", into: &keyFile)
        try reader.take("domains", into: &domains)
        try reader.finish()
    }
}

extension AgentConfig {
    fileprivate static func reader(_ decoder: any Decoder, _ path: String) throws -> Reader {
        try Reader(decoder, path: path)
    }

    public static let lanesMax = 16
    /// The VM runs on a little slower as long as it is recorded what it uses.
    public static let recordMsMax = 10_000.0
    static let patienceSMax = 86_400.0
    /// Hashes for the largest VM, 16 TiB, take 1 TiB.
    public static let lineTableMiBMax = 1 << 20

    /// A table has 31 bits of entries.
    public static let indexMiBMax = 16 << 10
    /// 16 TiB, as many segments as a store can number.
    public static let storeMiBMax = 1 << 24
    public static let keepSMax = 86_400.0

    /// - Throws: `Problem` `config-invalid`, `address-invalid`.
    public func validate() throws(Problem) {
        guard (1...Self.lanesMax).contains(link.lanes) else {
            throw Problem("config-invalid", "link.lanes is \(link.lanes); it can be 1 to \(Self.lanesMax).")
        }
        guard (0...SessionLimits.reconnectSMax).contains(link.reconnectS) else {
            throw Problem(
                "config-invalid",
                "link.reconnectS is \(link.reconnectS); it can be 0 (never) to \(Int(SessionLimits.reconnectSMax)) s.")
        }
        guard link.sourceLossS >= 1 else {
            throw Problem("config-invalid", "link.sourceLossS is \(link.sourceLossS); it must be at least 1 s.")
        }
        if let mebibytes = migrate.lineTableMiB, !(1...Self.lineTableMiBMax).contains(mebibytes) {
            throw Problem(
                "config-invalid",
                "migrate.lineTableMiB is \(mebibytes); it can be 1 to \(Self.lineTableMiBMax).",
                advice: "Leave it out for no cap. To send whole pages always, use `apus migrate --mode plain`.")
        }
        guard (0...Self.recordMsMax).contains(migrate.recordMs) else {
            throw Problem(
                "config-invalid",
                "migrate.recordMs is \(migrate.recordMs); it can be 0 (not at all) to \(Int(Self.recordMsMax)).")
        }
        guard (migrate.prefetch == .given) == (migrate.pushOrderFile != nil) else {
            throw Problem("config-invalid", "migrate.prefetch: given and migrate.pushOrderFile go together.")
        }
        guard (0...Self.patienceSMax).contains(migrate.patienceS) else {
            throw Problem(
                "config-invalid",
                "migrate.patienceS is \(migrate.patienceS); it can be 0 to \(Int(Self.patienceSMax)) s.")
        }
        guard (1...Self.indexMiBMax).contains(content.indexMiB), content.indexMBps > 0 else {
            throw Problem(
                "config-invalid",
                "content.indexMiB is \(content.indexMiB) and content.indexMBps \(content.indexMBps); "
                    + "they can be 1 to \(Self.indexMiBMax), and above 0.",
                advice: "To look for nothing on disks, set content.disks to false.")
        }
        guard (0...Self.storeMiBMax).contains(content.storeMiB) else {
            throw Problem(
                "config-invalid",
                "content.storeMiB is \(content.storeMiB); it can be 0 (nothing is kept) to \(Self.storeMiBMax).")
        }
        guard (1...Self.keepSMax).contains(content.keepS) else {
            throw Problem(
                "config-invalid", "content.keepS is \(content.keepS); it can be 1 to \(Int(Self.keepSMax)) seconds.",
                advice: "To keep nothing, set content.storeMiB to 0.")
        }
        if let keyFile = content.keyFile, !keyFile.hasPrefix("/") {
            throw Problem("config-invalid", "content.keyFile is \"\(keyFile)\"; it must be an absolute path.")
        }
        for (name, path) in [
            ("stateDirectory", stateDirectory), ("runDirectory", runDirectory), ("ramDirectory", ramDirectory),
        ] {
            guard path.hasPrefix("/") else {
                throw Problem("config-invalid", "\(name) is \"\(path)\"; it must be an absolute path.")
            }
        }
        _ = try ListenAddress(link.listen)
        if let listen = api.listen { _ = try ListenAddress(listen) }
        for (_, address) in hosts.sorted(by: { $0.key < $1.key }) {
            _ = try ListenAddress(address, defaultPort: Self.linkPort)
        }
    }
}
