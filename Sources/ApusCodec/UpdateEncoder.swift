public import ApusMemory
public import ApusSystem

/// Gathers changed lines over many batches into one frame, as Grappa gathers small messages. One per lane.
///
/// Its pages ascend, so one comparison tells that a page may be in it: then the frame has to go first.
public struct UpdateEncoder: ~Copyable, Sendable {
    public struct Result: Sendable, Equatable {
        /// Bytes at the front of ``UpdateEncoder/head``.
        public var headBytes: Int
        /// Bytes at the front of ``UpdateEncoder/lines`` that travel as they are.
        public var rawBytes: Int
        public var byteCount: Int { headBytes + rawBytes }
    }

    public let lineBytes: Int
    /// Payload up to lines that are not squeezed.
    public private(set) var head = PageBuffer(byteCount: UpdatePayload.headCapacity)
    public private(set) var lines = PageBuffer(byteCount: Limits.updateBytesMax)
    public private(set) var pageCount = 0
    public private(set) var lineByteCount = 0
    private var lastPage: PageNumber = 0
    private var squeezer = BodySqueezer()

    public init(lineBytes: Int) { self.lineBytes = lineBytes }

    public var isEmpty: Bool { pageCount == 0 }
    /// Enough for a frame; one batch more still fits.
    public var isFull: Bool { lineByteCount >= Limits.updateBytes }

    /// True when a page from `page` on may already be here: what is here must then travel before it.
    public func reaches(_ page: PageNumber) -> Bool { pageCount > 0 && page <= lastPage }

    /// Adds the lines of `bytes`, a whole page, that `mask` names. Not ``isFull``, and not ``reaches(_:)`` before the
    /// first page of a batch.
    public mutating func add(_ page: PageNumber, mask: UInt32, base: UInt8, _ bytes: RawSpan) {
        precondition(!reaches(page) && pageCount < Limits.updatePages)
        store(page, mask, base, at: pageCount)
        mask.eachRun { first, count in
            let part = bytes.extracting(first * lineBytes..<(first + count) * lineBytes)
            lines.write(part, at: lineByteCount)
            lineByteCount += part.byteCount
        }
        lastPage = page
        pageCount += 1
    }

    /// The page at one place of the frame.
    public func page(at index: Int) -> PageNumber {
        head.bytes.littleEndian(at: UpdatePayload.headBytes + index * UpdatePayload.entryBytes)
    }

    /// Completes the frame; it stays in ``head`` and ``lines`` until ``reset()``.
    public mutating func finish(_ choice: CodecChoice) -> Result {
        let at = UpdatePayload.headBytes + pageCount * UpdatePayload.entryBytes
        let (count, shift, byteCount) = (pageCount, lineBytes.trailingZeroBitCount, lineByteCount)
        let squeezed = Self.squeeze(&squeezer, lines, byteCount, choice, into: &head, at: at)
        var bytes = head.mutableBytes
        bytes.store(littleEndian: UInt16(count), at: 0)
        bytes.store(littleEndian: (squeezed?.codec ?? .none).rawValue, at: 2)
        bytes.store(littleEndian: squeezed?.restarted == true ? BatchPayload.restartFlag : 0, at: 3)
        bytes.store(littleEndian: UInt32(shift), at: 4)
        bytes.store(littleEndian: UInt32(squeezed?.byteCount ?? 0), at: 8)
        return Result(headBytes: at + (squeezed?.byteCount ?? 0), rawBytes: squeezed == nil ? byteCount : 0)
    }

    public mutating func reset() {
        pageCount = 0
        lineByteCount = 0
    }

    /// The receiver may have missed a part of what was sent.
    public mutating func restart() { squeezer.restart() }

    private static func squeeze(
        _ squeezer: inout BodySqueezer, _ lines: borrowing PageBuffer, _ byteCount: Int, _ choice: CodecChoice,
        into head: inout PageBuffer, at offset: Int
    ) -> BodySqueezer.Squeezed? {
        squeezer.squeeze(lines.bytes.extracting(0..<byteCount), choice, into: &head, at: offset)
    }

    private mutating func store(_ page: PageNumber, _ mask: UInt32, _ base: UInt8, at index: Int) {
        let at = UpdatePayload.headBytes + index * UpdatePayload.entryBytes
        var bytes = head.mutableBytes
        bytes.store(littleEndian: page, at: at)
        bytes.store(littleEndian: mask, at: at + 4)
        bytes.store(littleEndian: base, at: at + 8)
    }
}
