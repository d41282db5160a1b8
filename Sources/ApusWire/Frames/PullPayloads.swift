public import ApusMemory
public import ApusSystem

/// Which pages are missing at the destination, as pieces of a bitmap. Integers little-endian.
///
/// ```
///   0 u32 first word of the bitmap (its pages: word * 64 …)   4 u32 1: the last piece, 0: more follow
///   8 words of 64 pages each, the lowest page as the lowest bit
/// ```
///
/// Pieces come in order; words that no piece covers are zero. The last one may be empty.
public enum ResidencePayload {
    public static let headBytes = 8
    public static let wordsMax = 8 << 10
    public static let bytesMax = headBytes + wordsMax * 8

    /// So many zero words end a piece: the guest stands still while they would travel.
    private static let gapWords = 64

    /// All frames of a set, ready to send.
    public static func pieces(_ pages: PageSet) -> [[UInt8]] {
        var pieces: [[UInt8]] = []
        var word = 0
        while word < pages.wordCount {
            let words = piece(of: pages, from: word)
            if !words.isEmpty { pieces.append(encoded(pages, words)) }
            word = max(words.upperBound, word + 1)
        }
        if pieces.isEmpty { pieces.append(encoded(pages, 0..<0)) }
        pieces[pieces.count - 1][4] = 1
        return pieces
    }

    /// The words that one piece has when it begins with this one; empty: this one is zero.
    private static func piece(of pages: PageSet, from start: Int) -> Range<Int> {
        var end = start
        for word in start..<min(start + wordsMax, pages.wordCount) {
            if pages[word: word] != 0 { end = word + 1 } else if end == start || word - end >= gapWords { break }
        }
        return start..<end
    }

    private static func encoded(_ pages: PageSet, _ words: Range<Int>) -> [UInt8] {
        var writer = ByteWriter()
        writer.put(UInt32(words.lowerBound))
        writer.put(UInt32(0))
        for word in words { writer.put(pages[word: word]) }
        return writer.bytes
    }

    /// Adds one piece to the set that is being put together.
    ///
    /// - Returns: true: it was the last.
    /// - Throws: `FrameError` when it is not within the VM.
    public static func take(_ payload: RawSpan, into pages: inout PageSet) throws(FrameError) -> Bool {
        guard payload.byteCount >= headBytes, payload.byteCount % 8 == 0, payload.byteCount <= bytesMax else {
            throw .wrongLength(kind: .residence, length: payload.byteCount)
        }
        let first = Int(payload.littleEndian(at: 0, as: UInt32.self))
        let count = (payload.byteCount - headBytes) / 8
        let flag = payload.littleEndian(at: 4, as: UInt32.self)
        guard first + count <= pages.wordCount, flag <= 1 else {
            throw .badPayload(.residence, "words \(first) to \(first + count) of \(pages.wordCount)")
        }
        for index in 0..<count {
            let word = payload.littleEndian(at: headBytes + index * 8, as: UInt64.self)
            pages[word: first + index] = word
            guard pages[word: first + index] == word else { throw .badPayload(.residence, "pages behind the last one") }
        }
        return flag == 1
    }
}

/// Pages that somebody waits for: runs of u32 first page, u32 pages.
public enum WantedPayload {
    public static let runsMax = 64
    public static let bytesMax = runsMax * 8

    public static func runCount(_ payload: RawSpan) throws(FrameError) -> Int {
        guard payload.byteCount > 0, payload.byteCount % 8 == 0, payload.byteCount <= bytesMax else {
            throw .wrongLength(kind: .wanted, length: payload.byteCount)
        }
        return payload.byteCount / 8
    }

    /// - Throws: `FrameError` when the run is not of this VM, or longer than a batch.
    public static func run(
        _ payload: RawSpan, at index: Int, of layout: Layout
    ) throws(FrameError) -> (first: PageNumber, count: Int) {
        let first = payload.littleEndian(at: index * 8, as: UInt32.self)
        let count = payload.littleEndian(at: index * 8 + 4, as: UInt32.self)
        guard count > 0, count <= Limits.batchPages, let block = layout.block(of: first),
            UInt64(first) + UInt64(count) <= UInt64(layout.pageCount), layout.block(of: first + count - 1) == block
        else { throw .badPayload(.wanted, "\(count) pages from \(first)") }
        return (first, Int(count))
    }

    public static func store(_ run: (first: PageNumber, count: Int), at index: Int, in buffer: inout PageBuffer) {
        var bytes = buffer.mutableBytes
        bytes.store(littleEndian: run.first, at: index * 8)
        bytes.store(littleEndian: UInt32(run.count), at: index * 8 + 4)
    }
}
