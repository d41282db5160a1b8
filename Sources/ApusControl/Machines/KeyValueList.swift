/// The value of a QEMU option: `first,key=value,flag,key=with,,comma`.
public struct KeyValueList: Sendable, Equatable {
    /// `value` nil: a flag without `=`.
    public var pairs: [(key: String, value: String?)]

    public init(pairs: [(key: String, value: String?)]) { self.pairs = pairs }

    /// `implied`: the key of a first element without `=`.
    public init(_ text: String, implied: String) {
        pairs = []
        for (index, element) in Self.split(text).enumerated() where !element.isEmpty {
            if let equals = element.firstIndex(of: "=") {
                pairs.append((String(element[..<equals]), String(element[element.index(after: equals)...])))
            } else if index == 0 {
                pairs.append((implied, element))
            } else {
                pairs.append((element, nil))
            }
        }
    }

    /// The last value of a key, as QEMU takes it.
    public subscript(key: String) -> String? {
        get { pairs.last { $0.key == key }?.value }
        set {
            let first = pairs.firstIndex { $0.key == key }
            guard let newValue else { return pairs.removeAll { $0.key == key } }
            guard let first else { return pairs.append((key, newValue)) }
            pairs[first].value = newValue
            let kept = pairs[...first]
            pairs = Array(kept) + pairs[(first + 1)...].filter { $0.key != key }
        }
    }

    public func text(implied: String) -> String {
        pairs.enumerated().map { index, pair in
            guard let value = pair.value else { return pair.key }
            let escaped = value.split(separator: ",", omittingEmptySubsequences: false).joined(separator: ",,")
            return index == 0 && pair.key == implied && !value.contains("=") ? escaped : "\(pair.key)=\(escaped)"
        }.joined(separator: ",")
    }

    /// At single commas; a doubled one is a comma of the element.
    private static func split(_ text: String) -> [String] {
        var elements: [String] = []
        var current = ""
        var rest = text[...]
        while let character = rest.popFirst() {
            guard character == "," else {
                current.append(character)
                continue
            }
            if rest.first == "," {
                rest.removeFirst()
                current.append(",")
            } else {
                elements.append(current)
                current = ""
            }
        }
        return elements + [current]
    }

    public static func == (left: KeyValueList, right: KeyValueList) -> Bool {
        left.pairs.elementsEqual(right.pairs) { $0.key == $1.key && $0.value == $1.value }
    }
}

/// Sizes as QEMU's command line writes them.
public enum QemuSize {
    /// The value of `-m`: MiB unless it ends in a suffix; QEMU rounds up to 8 KiB. nil: QEMU refuses it, or zero.
    public static func memoryBytes(_ text: String) -> UInt64? {
        // A fraction of a MiB must name its unit.
        guard let last = text.last, !last.isNumber || !text.contains(".") else { return nil }
        guard let bytes = bytes(last.isNumber ? text + "M" : text), bytes > 0, bytes <= UInt64.max - 8191 else {
            return nil
        }
        return (bytes + 8191) / 8192 * 8192
    }

    /// A number with an optional suffix (b, k, M, G, T, P, E; powers of 1024), a fraction only with one. In bytes.
    static func bytes(_ text: String) -> UInt64? {
        let lower = text.lowercased()
        let hex = lower.hasPrefix("0x")
        let body = hex ? lower.dropFirst(2) : lower[...]
        let digits = body.prefix { hex ? $0.isHexDigit && $0 != "b" && $0 != "e" : $0.isASCII && $0.isNumber }
        guard !digits.isEmpty, let whole = UInt64(digits, radix: hex ? 16 : 10) else { return nil }
        var rest = body.dropFirst(digits.count)
        var fraction = 0.0
        if rest.first == ".", !hex {
            let decimals = rest.dropFirst().prefix { $0.isASCII && $0.isNumber }
            guard !decimals.isEmpty, let value = Double("0." + decimals) else { return nil }
            fraction = value
            rest = rest.dropFirst(1 + decimals.count)
        }
        let shifts: [Substring: UInt64] = ["": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60]
        guard let shift = shifts[rest], fraction == 0 || shift > 0 else { return nil }
        let unit = UInt64(1) << shift
        let (product, overflow) = whole.multipliedReportingOverflow(by: unit)
        return overflow ? nil : product + UInt64(fraction * Double(unit))
    }
}
