import ApusSystem

/// Why the data of an XBZRLE record do not describe a page.
public enum XbzrleError: Error, Sendable, Equatable {
    /// The data end inside a number or inside the bytes of a run.
    case truncated
    /// A length of more than two bytes.
    case lengthTooLong
    /// A zero run of length 0 that is not the first, or a run of new bytes of length 0.
    case emptyRun
    /// A run reaches beyond the page.
    case outsidePage
}

/// Xor-based zero run length encoding, as QEMU calls it; no xor is left in it.
///
///     [zero run, new run, new bytes]*      lengths are unsigned LEB128 of one or two bytes
///
/// A zero run keeps the old bytes, new bytes replace them, and after the last pair the old bytes stay.
public enum Xbzrle {
    /// Changes `page` from the content last sent for it to the content now.
    ///
    /// - Parameters:
    ///   - data: the data of the record, 0 to 4096 bytes.
    ///   - page: the page, in place; of any length up to the runs' reach, 4096 bytes for QEMU.
    /// - Throws: ``XbzrleError``; the page is then partly changed and worthless.
    public static func apply(_ data: RawSpan, to page: inout MutableRawSpan) throws(XbzrleError) {
        var source = 0
        var target = 0
        while source < data.byteCount {
            let isFirst = source == 0
            let kept = try length(data, &source)
            guard kept > 0 || isFirst else { throw .emptyRun }
            guard kept <= page.byteCount - target else { throw .outsidePage }
            target += kept
            // QEMU's encoder never ends with a zero run, and its decoder refuses one.
            let new = try length(data, &source)
            guard new > 0 else { throw .emptyRun }
            guard new <= page.byteCount - target else { throw .outsidePage }
            guard new <= data.byteCount - source else { throw .truncated }
            copy(data, from: source, count: new, to: &page, at: target)
            source += new
            target += new
        }
    }

    private static func length(_ data: RawSpan, _ offset: inout Int) throws(XbzrleError) -> Int {
        guard offset < data.byteCount else { throw .truncated }
        let low = Int(data.byte(at: offset))
        offset += 1
        guard low >= 0x80 else { return low }
        guard offset < data.byteCount else { throw .truncated }
        let high = Int(data.byte(at: offset))
        guard high < 0x80 else { throw .lengthTooLong }
        offset += 1
        return low & 0x7f | high << 7
    }

    @inline(__always)
    private static func copy(
        _ source: RawSpan, from: Int, count: Int, to target: inout MutableRawSpan, at: Int
    ) {
        var index = 0
        while index + 8 <= count {
            target.store(bigEndian: source.bigEndian(at: from + index, as: UInt64.self), at: at + index)
            index += 8
        }
        while index < count {
            target.store(bigEndian: source.byte(at: from + index), at: at + index)
            index += 1
        }
    }
}
