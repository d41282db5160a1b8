internal import ApusCodec
public import ApusMemory
internal import ApusSystem

public enum BatchLimits {
    public static let payloadBytesMax = BatchPayload.bytesMax
    public static let updateBytesMax = UpdatePayload.bytesMax
}

/// What both sides can do, as bits. A sender uses only what both have.
public struct Features: OptionSet, Sendable {
    public let rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }
    public static let lz4 = Features(rawValue: 1 << 0)
    public static let zstd = Features(rawValue: 1 << 1)
    /// Changed lines instead of whole pages.
    public static let lines = Features(rawValue: 1 << 2)
    public static let all: Features = [.lz4, .zstd, .lines]
}

/// What a connection is for. Zero is no role.
public enum Role: UInt8, Sendable {
    case control = 1
    case lane = 2
    /// Pages after the guest has moved: lane 0 for those that somebody waits for, lane 1 for the rest.
    case urgent = 3
    /// Measures the link; belongs to no job.
    case probe = 4
}

/// A random name for one job's connections; whoever does not know it cannot attach a lane.
public struct Token: Hashable, Sendable {
    public let high: UInt64
    public let low: UInt64
    public init(high: UInt64, low: UInt64) {
        self.high = high
        self.low = low
    }
    public static func random() -> Token {
        var source = SystemRandomNumberGenerator()
        return Token(high: source.next(), low: source.next())
    }
    /// Of a control connection that opens a new job.
    public static let none = Token(high: 0, low: 0)
}

/// First words of a connection; 36 bytes, little-endian.
///
/// ```
///   0 u16 lowest protocol version   2 u16 highest   4 u64 features   12 u8 role   13 u8 zero   14 u16 lane
///  16 u64 token high   24 u64 token low   32 u32 lanes of the job
/// ```
public struct Hello: Equatable, Sendable {
    public static let byteCount = 36
    /// Protocol versions this build speaks.
    public static let versions: ClosedRange<UInt16> = 3...3

    public var versions: ClosedRange<UInt16>
    public var features: Features
    public var role: Role
    public var lane: UInt16
    public var lanes: UInt32
    public var token: Token

    public init(
        role: Role, lane: UInt16 = 0, lanes: UInt32 = 0, token: Token = .none, features: Features = .all,
        versions: ClosedRange<UInt16> = Hello.versions
    ) {
        self.versions = versions
        self.features = features
        self.role = role
        self.lane = lane
        self.lanes = lanes
        self.token = token
    }

    public var bytes: [UInt8] {
        var writer = ByteWriter()
        writer.put(versions.lowerBound)
        writer.put(versions.upperBound)
        writer.put(features.rawValue)
        writer.put(role.rawValue)
        writer.put(UInt8(0))
        writer.put(lane)
        writer.put(token.high)
        writer.put(token.low)
        writer.put(lanes)
        return writer.bytes
    }

    public init(_ payload: RawSpan) throws(FrameError) {
        guard payload.byteCount == Self.byteCount else { throw .wrongLength(kind: .hello, length: payload.byteCount) }
        let low = payload.littleEndian(at: 0, as: UInt16.self)
        let high = payload.littleEndian(at: 2, as: UInt16.self)
        guard low > 0, low <= high else { throw .badPayload(.hello, "versions \(low) to \(high)") }
        guard let role = Role(rawValue: payload.byte(at: 12)) else {
            throw .badPayload(.hello, "unknown role \(payload.byte(at: 12))")
        }
        self.init(
            role: role, lane: payload.littleEndian(at: 14), lanes: payload.littleEndian(at: 32),
            token: Token(high: payload.littleEndian(at: 16), low: payload.littleEndian(at: 24)),
            features: Features(rawValue: payload.littleEndian(at: 4)), versions: low...high)
    }

    /// The highest version both sides speak; nil when there is none.
    public func commonVersion(with other: ClosedRange<UInt16> = Hello.versions) -> UInt16? {
        let version = min(versions.upperBound, other.upperBound)
        return version >= versions.lowerBound && version >= other.lowerBound ? version : nil
    }
}

/// Answer to ``Hello``: u16 version, u16 zero, u64 features of both.
public struct Welcome: Equatable, Sendable {
    public var version: UInt16
    public var features: Features

    public init(version: UInt16, features: Features) {
        self.version = version
        self.features = features
    }

    public var bytes: [UInt8] {
        var writer = ByteWriter()
        writer.put(version)
        writer.put(UInt16(0))
        writer.put(features.rawValue)
        return writer.bytes
    }

    public init(_ payload: RawSpan) throws(FrameError) {
        guard payload.byteCount == 12 else { throw .wrongLength(kind: .welcome, length: payload.byteCount) }
        self.init(version: payload.littleEndian(at: 0), features: Features(rawValue: payload.littleEndian(at: 4)))
    }
}

/// Why a connection is not accepted: u16 code, UTF-8 text of at most 1000 bytes.
public struct Refusal: Equatable, Sendable, Error {
    public enum Code: UInt16, Sendable {
        case version = 1
        case unknownJob = 2
        case badLane = 3
        case busy = 4
    }
    public var code: Code
    public var text: String

    public init(_ code: Code, _ text: String) {
        self.code = code
        self.text = text
    }

    public var bytes: [UInt8] {
        var writer = ByteWriter()
        writer.put(code.rawValue)
        return writer.bytes + Array(text.utf8.prefix(1000))
    }

    public init(_ payload: RawSpan) throws(FrameError) {
        guard payload.byteCount >= 2 else { throw .wrongLength(kind: .refusal, length: payload.byteCount) }
        let raw = payload.littleEndian(at: 0, as: UInt16.self)
        guard let code = Code(rawValue: raw) else { throw .badPayload(.refusal, "unknown code \(raw)") }
        var text: [UInt8] = []
        for index in 2..<payload.byteCount { text.append(payload.byte(at: index)) }
        self.init(code, String(decoding: text, as: UTF8.self))
    }
}

/// A VM's RAM blocks: u16 count, then per block u8 name length, name, u64 bytes.
public enum LayoutPayload {
    public static func bytes(_ layout: Layout) -> [UInt8] {
        var writer = ByteWriter()
        writer.put(UInt16(layout.blocks.count))
        for block in layout.blocks {
            writer.put(UInt8(block.name.utf8.count))
            writer.put(block.name.utf8)
            writer.put(block.byteCount)
        }
        return writer.bytes
    }

    public static func layout(_ payload: RawSpan) throws(FrameError) -> Layout {
        func damaged() -> FrameError { .badPayload(.layout, "ends early") }
        guard payload.byteCount >= 2 else { throw damaged() }
        let count = Int(payload.littleEndian(at: 0, as: UInt16.self))
        var at = 2
        var blocks: [(name: String, byteCount: UInt64)] = []
        for _ in 0..<count {
            guard at < payload.byteCount else { throw damaged() }
            let length = Int(payload.byte(at: at))
            guard payload.byteCount - at >= 1 + length + 8 else { throw damaged() }
            let name = (0..<length).map { payload.byte(at: at + 1 + $0) }
            blocks.append((String(decoding: name, as: UTF8.self), payload.littleEndian(at: at + 1 + length)))
            at += 1 + length + 8
        }
        guard at == payload.byteCount else { throw .badPayload(.layout, "longer than its blocks") }
        do throws(LayoutError) { return try Layout(blocks) } catch { throw .badPayload(.layout, "\(error)") }
    }
}

/// Pages of which a receiver can change a part: u16 count, then per range u32 first page, u32 pages.
public enum PatchablePayload {
    public static let bytesMax = 2 + Limits.patchableRanges * 8

    public static func bytes(_ pages: PageRanges) -> [UInt8] {
        var writer = ByteWriter()
        writer.put(UInt16(pages.ranges.count))
        for range in pages.ranges {
            writer.put(range.lowerBound)
            writer.put(UInt32(range.count))
        }
        return writer.bytes
    }

    public static func pages(_ payload: RawSpan) throws(FrameError) -> PageRanges {
        guard payload.byteCount >= 2 else { throw .wrongLength(kind: .patchable, length: payload.byteCount) }
        let count = Int(payload.littleEndian(at: 0, as: UInt16.self))
        guard payload.byteCount == 2 + count * 8 else {
            throw .wrongLength(kind: .patchable, length: payload.byteCount)
        }
        var pages = PageRanges()
        for index in 0..<count {
            let first = payload.littleEndian(at: 2 + index * 8, as: UInt32.self)
            let (end, overflows) = first.addingReportingOverflow(payload.littleEndian(at: 6 + index * 8))
            guard !overflows, first < end, pages.append(first..<end) else {
                throw .badPayload(.patchable, "range \(index) is empty, overlaps, or is one too many")
            }
        }
        return pages
    }
}

/// Collects little-endian integers.
struct ByteWriter {
    private(set) var bytes: [UInt8] = []
    mutating func put<T: FixedWidthInteger>(_ value: T) {
        for shift in stride(from: 0, to: T.bitWidth, by: 8) {
            bytes.append(UInt8(truncatingIfNeeded: value >> T(shift)))
        }
    }
    mutating func put(_ text: String.UTF8View) { bytes.append(contentsOf: text) }
}
