// What QEMU's migration stream consists of, as the reader reports it and the writer accepts it.
//
//   QEVM 3 7 machine [configuration]*              header
//   08 OPEN_RETURN_PATH, PING, POSTCOPY_ADVISE     commands, anywhere between sections
//   01 ram  [block list] [record]* EOS  7e id      SECTION_START
//   02 id   [record]* EOS               7e id      SECTION_PART, any number
//   03 id   [record]* EOS               7e id      SECTION_END
//   04 device state without a length    7e id      SECTION_FULL, from here on opaque
//   00  06 length JSON                             end of a pre-copy stream

/// One answer of a reader that never does I/O itself.
public enum StreamStep<Element: Sendable & Equatable>: Sendable, Equatable {
    /// The next element is not complete: call again with at least this many bytes, counted from the same front.
    /// Always more than the bytes that were offered.
    case needMore(Int)
    /// The element occupies the first `length` bytes; drop them before the next call. Length 0 marks an event.
    case element(Element, length: Int)
}

/// What a section carries; anything else in a section with iterations is refused.
public enum SectionKind: Sendable, Equatable {
    /// Guest memory: block list and page records.
    case ram
    /// Dirty bitmaps of block devices, passed through chunk by chunk.
    case dirtyBitmap
    /// Device state, passed through.
    case device
}

/// The head of a START or FULL section. The name is `nameLength` bytes from byte 6 of the element.
public struct SectionHead: Sendable, Equatable {
    public var id: UInt32
    public var kind: SectionKind
    public var instance: UInt32
    public var version: UInt32
    public var nameLength: Int

    public init(id: UInt32, kind: SectionKind, instance: UInt32, version: UInt32, nameLength: Int) {
        self.id = id
        self.kind = kind
        self.instance = instance
        self.version = version
        self.nameLength = nameLength
    }
}

/// One subsection of the configuration that follows the machine name.
public enum StreamConfiguration: Sendable, Equatable {
    /// log2 of the target page size; only 12 is accepted.
    case targetPageBits(UInt32)
    /// Capabilities both sides must share; of these only x-ignore-shared can be read.
    case capabilities(count: Int)
    /// The VM's uuid: the last 16 bytes of the element.
    case uuid
}

/// A command of the main stream (u8 8, u16 number, u16 length, payload).
public enum StreamCommand: Sendable, Equatable {
    /// From here on the destination may write on the main connection.
    case openReturnPath
    /// The destination answers with PONG of the same number.
    case ping(UInt32)
    /// Post-copy may follow. Both are bit sums of page sizes in bytes. The destination drops all its RAM now.
    case postcopyAdvise(pageSizes: UInt64, targetPageSize: UInt64)
    /// Post-copy of dirty bitmaps only.
    case postcopyAdviseBitmaps
    /// The destination registers userfaultfd and starts its listening thread.
    case postcopyListen
    /// The guest starts at the destination.
    case postcopyRun
    /// Ranges to drop: the last 16 * `ranges` bytes of the element, each u64 start, u64 byte count, all inside the
    /// block. See ``PageRange``.
    case postcopyDiscard(block: Int, ranges: Int)
    /// The next `length` bytes are an embedded stream without header; its elements follow, then `packageEnd`.
    case packaged(length: Int)
    /// Recovery: the destination answers RESUME_ACK.
    case postcopyResume
    /// Recovery: the destination answers with the bitmap of received pages.
    case receiveBitmap(block: Int)
    /// The last part before the guest's stop is over (machine types 10.0 and later).
    case switchoverStart
    /// A command this reader does not know; its payload is the last `length` bytes. QEMU refuses what it does not know.
    case unknown(number: UInt16, length: Int)
}

/// One element of the main stream or of the post-copy preempt channel. Trivial: no heap, no reference counts.
/// `block` is an index into ``QemuStreamReader/blocks``; `offset` is in bytes from the block's start, page aligned.
public enum StreamElement: Sendable, Equatable {
    /// Magic, version and machine name.
    case header(nameLength: Int)
    case configuration(StreamConfiguration)
    case sectionStart(SectionHead)
    case sectionPart(id: UInt32, kind: SectionKind)
    case sectionEnd(id: UInt32, kind: SectionKind)
    /// Head of a device section. If `isOpaque` is set afterwards, all RAM must be in place before it is passed on.
    case sectionFull(SectionHead)
    case footer(id: UInt32)
    /// The list of RAM blocks, now in ``QemuStreamReader/blocks``.
    case blockList(count: Int)
    /// A page; its 4096 bytes are the last of the element.
    case page(block: Int, offset: UInt64)
    /// A page of zeros.
    case zero(block: Int, offset: UInt64)
    /// A change against the content last sent for the page; the data are the last `dataLength` bytes. See ``Xbzrle``.
    case xbzrle(block: Int, offset: UInt64, dataLength: Int)
    /// A page as one zlib stream: the last `dataLength` bytes (QEMU before 9.1).
    case compressed(block: Int, offset: UInt64, dataLength: Int)
    /// Pages sent so far on the multifd channels must be placed before the stream goes on.
    case multifdFlush
    /// EOS: no more records in this section. The footer follows.
    case endOfRecords
    /// A chunk of a dirty-bitmap section; `flags` as on the wire (0x01 ends the body).
    case bitmapChunk(flags: UInt8)
    case command(StreamCommand)
    /// The bytes announced by `packaged` are over. Length 0.
    case packageEnd
    /// Device state, any number of bytes.
    case deviceBytes
    /// The byte that ends the stream. Inside opaque device state it is only a guess: if `deviceBytes` follows, it
    /// belonged to the device state; if `vmDescription` or the end of the connection follows, it was the end.
    case endOfFile
    /// Type byte and length of the JSON text that describes the device state; the text follows.
    case vmDescription(length: Int)
    case vmDescriptionBytes
    /// The stream is complete. Length 0. If bytes follow all the same, a guest has planted a false end in its device
    /// state: the reader goes on with `deviceBytes`. The proof of the end is SHUT or the end of the connection.
    case end
}
