/// Bounds of everything a QMP peer or a slow reader could grow.
public enum QMPLimits {
    /// Longest message (one line) accepted from QEMU, in bytes. The largest real one, `query-qmp-schema`, is 0.2 MB.
    public static let messageBytesMax = 16 << 20
    /// Events kept for one subscriber that does not read; beyond it the oldest are dropped and counted.
    public static let eventsBufferedMax = 1024
    /// Commands that may wait for a reply at once; QEMU itself queues 8 per monitor and then stops reading.
    public static let commandsPendingMax = 256
    /// Time QEMU gets for one command when the caller names none.
    public static let commandTimeout: Duration = .seconds(10)
    /// Bytes of a malformed message that an error repeats.
    static let excerptBytesMax = 80
}
