import ApusSystem

/// What an incoming migration connection carries, told from its first bytes.
public enum ConnectionKind: Sendable, Equatable {
    /// The main stream of a new migration.
    case main
    /// The main stream of a recovery: begins with a command, without header.
    case recovery
    /// A multifd channel, number `channel`. Apus cannot merge them: switch multifd off, or use only the main channel.
    case multifd(channel: UInt8)
    /// A post-copy preempt channel: begins with a RAM record.
    case preempt
    /// A TLS client greets; the stream is inside.
    case tls
    /// Nothing of QEMU's.
    case other

    static let mainMagic: UInt32 = 0x5145_564d
    static let multifdMagic: UInt32 = 0x1122_3344

    /// Looks at the first bytes of a connection.
    ///
    /// - Returns: nil while there are too few bytes to decide: 4 for most, 64 for a multifd handshake, 8 for preempt.
    public init?(firstBytes bytes: RawSpan) {
        guard bytes.byteCount >= 4 else { return nil }
        let word: UInt32 = bytes.bigEndian(at: 0)
        if word == Self.mainMagic {
            self = .main
        } else if word == Self.multifdMagic {
            // u32 magic, u32 version, 16 bytes uuid, u8 channel, 39 reserved.
            guard bytes.byteCount >= 64 else { return nil }
            self = bytes.bigEndian(at: 4, as: UInt32.self) == 1 ? .multifd(channel: bytes.byte(at: 24)) : .other
        } else if word >> 8 == 0x080009 || word >> 8 == 0x08000a {
            self = .recovery
        } else if word >> 16 == 0x1603 {
            self = .tls
        } else {
            guard bytes.byteCount >= 8 else { return nil }
            // The first record of a channel names its block and holds a page, of zeros or not.
            let record: UInt64 = bytes.bigEndian(at: 0)
            let flags = record & RecordFlags.mask
            let isPage = flags == RecordFlags.page || flags == RecordFlags.zero
            self = isPage && record < StreamLimits().ramBytes ? .preempt : .other
        }
    }
}
