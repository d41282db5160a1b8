/// Every bound of the data plane, with its reason. What exceeds one is refused, never grown into.
public enum Limits {
    /// Bytes of a guest page; the only size that x86 streams use.
    public static let pageBytes = 4096
    /// Data pages in a batch: 256 KiB stays in a core's cache from the first copy to the socket.
    public static let batchPages = 64
    /// Runs in a batch: room for alternating zero and data pages.
    public static let batchRecords = 128
    /// Pages of one run; zero runs may be long.
    public static let runPages = 65_535
    /// Batches a lane may have filled but not sent. They are the only pages that rest inside the source agent.
    public static let batchesPerLane = 4
    /// Lanes of one migration.
    public static let lanes = 16
    /// RAM blocks of one VM (QEMU itself has tens).
    public static let ramBlocks = 1024
    /// Pages of one VM: page numbers are 32 bits wide, 16 TiB.
    public static let ramPages = UInt64(UInt32.max)
    /// Hot pages of QEMU's stream that may be kept back: 64 MiB.
    public static let heldPages = 16 << 10
    /// Batches sent but not credited, so that all credits in flight fit any socket buffer.
    public static let batchesInFlight = 256
    /// Bytes a lane may have in flight, whatever the link; see `LinkMeter`.
    public static let windowBytesMin = 512 << 10
    public static let windowBytesMax = 8 << 20
    /// Frames of references that a lane may have unanswered: enough to read in the disk's order and to keep the storage
    /// busy over a round trip; 8 MiB of memory at the receiver.
    public static let referencesInFlight = 32
    /// Pages of one reference: with twice as many it takes hardly less room, and one wrong page refuses them all.
    public static let referencePages = 16
    /// Disk images of one VM that pages may refer to.
    public static let images = 32
    /// Pages of a snapshot whose hints a receiver tells: 256 GiB.
    public static let snapshotPages = 64 << 20
    /// Runs of pages in frames that are not credited yet, per lane; half a MiB of memory.
    public static let runsInFlight = 64 << 10
    /// Changed lines travel together once so many bytes have gathered: large enough that a frame's head is nothing.
    public static let updateBytes = 64 << 10
    /// Pages in one update frame: its buffer full of single lines, and one batch on top.
    public static let updatePages = updateBytes / lineBytesMin + batchPages
    /// Bytes of lines in one update frame: its buffer, and a batch on top.
    public static let updateBytesMax = updateBytes + batchPages * pageBytes
    /// How long changed lines wait for more of them: nothing beside a round, much beside a batch.
    public static let updateAgeMs = 10.0
    /// Lines of a page: a mask has 32 bits.
    public static let lineBytesMin = 128
    public static let lineBytesMax = 2048
    /// Ranges of pages that a receiver can patch. What is beyond them travels as whole pages.
    public static let patchableRanges = 64
}
