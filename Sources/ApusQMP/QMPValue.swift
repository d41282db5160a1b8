import Foundation

/// Any JSON value: command arguments, and replies whose shape depends on what was asked.
public enum QMPValue: Sendable, Equatable {
    case null
    case bool(Bool)
    case int(Int64)
    /// Only for numbers above `Int64.max`.
    case unsigned(UInt64)
    case double(Double)
    case string(String)
    case array([QMPValue])
    case object([String: QMPValue])

    public var string: String? { if case .string(let value) = self { value } else { nil } }
    public var bool: Bool? { if case .bool(let value) = self { value } else { nil } }
    public var unsigned: UInt64? {
        switch self {
        case .int(let value): UInt64(exactly: value)
        case .unsigned(let value): value
        case .null, .bool, .double, .string, .array, .object: nil
        }
    }
    public subscript(key: String) -> QMPValue? { if case .object(let fields) = self { fields[key] } else { nil } }

    /// A number QEMU takes as a size or count.
    public static func count(_ value: UInt64) -> QMPValue {
        Int64(exactly: value).map(QMPValue.int) ?? .unsigned(value)
    }
}

extension QMPValue: Codable {
    public init(from decoder: any Decoder) throws {
        let box = try decoder.singleValueContainer()
        if box.decodeNil() {
            self = .null
        } else if let value = try? box.decode(Bool.self) {
            self = .bool(value)
        } else if let value = try? box.decode(Int64.self) {
            self = .int(value)
        } else if let value = try? box.decode(UInt64.self) {
            self = .unsigned(value)
        } else if let value = try? box.decode(Double.self) {
            self = .double(value)
        } else if let value = try? box.decode(String.self) {
            self = .string(value)
        } else if let value = try? box.decode([QMPValue].self) {
            self = .array(value)
        } else {
            self = .object(try box.decode([String: QMPValue].self))
        }
    }

    public func encode(to encoder: any Encoder) throws {
        var box = encoder.singleValueContainer()
        switch self {
        case .null: try box.encodeNil()
        case .bool(let value): try box.encode(value)
        case .int(let value): try box.encode(value)
        case .unsigned(let value): try box.encode(value)
        case .double(let value): try box.encode(value)
        case .string(let value): try box.encode(value)
        case .array(let value): try box.encode(value)
        case .object(let value): try box.encode(value)
        }
    }
}

extension QMPValue: ExpressibleByStringLiteral, ExpressibleByBooleanLiteral, ExpressibleByIntegerLiteral,
    ExpressibleByArrayLiteral, ExpressibleByDictionaryLiteral
{
    public init(stringLiteral value: String) { self = .string(value) }
    public init(booleanLiteral value: Bool) { self = .bool(value) }
    public init(integerLiteral value: Int64) { self = .int(value) }
    public init(arrayLiteral elements: QMPValue...) { self = .array(elements) }
    public init(dictionaryLiteral elements: (String, QMPValue)...) {
        self = .object(Dictionary(elements, uniquingKeysWith: { _, last in last }))
    }
}
