import ApusSystem

/// Growing bytes for what the writers produce. Reuse it: `removeAll` keeps the memory.
public struct StreamBuffer: Sendable {
    // Always longer than or as long as `count`; the rest is scratch.
    private var storage: [UInt8]
    /// Bytes written so far.
    public private(set) var count = 0

    public init(capacity: Int = 4096) {
        storage = Array(repeating: 0, count: max(capacity, 64))
    }

    /// What was written.
    public var bytes: RawSpan {
        @_lifetime(borrow self)
        get { storage.span.rawBytes.extracting(0..<count) }
    }

    public mutating func removeAll() { count = 0 }

    /// Big-endian, in the integer's own width.
    @inline(__always)
    public mutating func append<T: FixedWidthInteger & BitwiseCopyable>(_ value: T) {
        let size = MemoryLayout<T>.size
        let end = count
        if storage.count - end < size { grow(for: size) }
        var span = storage.mutableSpan
        var bytes = span.rawBytes
        bytes.store(bigEndian: value, at: end)
        count = end + size
    }

    public mutating func append(_ source: RawSpan) {
        let size = source.byteCount
        let end = count
        if storage.count - end < size { grow(for: size) }
        var span = storage.mutableSpan
        var bytes = span.rawBytes
        var index = 0
        while index + 8 <= size {
            bytes.store(bigEndian: source.bigEndian(at: index, as: UInt64.self), at: end + index)
            index += 8
        }
        while index < size {
            bytes.store(bigEndian: source.byte(at: index), at: end + index)
            index += 1
        }
        count = end + size
    }

    /// u8 length and bytes; traps when the text has no byte or more than 255.
    public mutating func append(name: String) {
        let utf8 = name.utf8
        precondition((1...255).contains(utf8.count), "A name on the wire has 1 to 255 bytes")
        append(UInt8(utf8.count))
        for byte in utf8 { append(byte) }
    }

    /// Overwrites four bytes written earlier, for lengths that are known late; traps outside what was written.
    public mutating func replace(_ value: UInt32, at offset: Int) {
        precondition(offset >= 0 && offset + 4 <= count, "Outside what was written")
        var span = storage.mutableSpan
        var bytes = span.rawBytes
        bytes.store(bigEndian: value, at: offset)
    }

    private mutating func grow(for size: Int) {
        let wanted = max(storage.count * 2, count + size)
        storage.append(contentsOf: repeatElement(0, count: wanted - storage.count))
    }
}
