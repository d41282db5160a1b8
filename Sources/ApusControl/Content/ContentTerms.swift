import ApusSystem

/// Where a source would like to refer to, as an option of its offer.
struct ContentOffer: Codable, Sendable, Equatable {
    /// Paths of the VM's disk images that are indexed at the source.
    var images: [String]
}

/// What a destination agrees to of it.
public struct ContentTerms: Codable, Sendable, Equatable {
    /// Of the VM's trust domain at the destination, hexadecimal: the key of all proofs and of its snapshot's hints. Whoever
    /// hears this connection hears the VM's memory too.
    public var secret: String
    /// Which of the offered images can be read here, by their place in the offer.
    public var images: [Int]
    /// What was given up, for people.
    public var notes: [String]

    public init(secret: String, images: [Int], notes: [String]) {
        self.secret = secret
        self.images = images
        self.notes = notes
    }

    /// Nil: it is no secret.
    var secretBytes: [UInt8]? {
        let digits = Array(secret.utf8)
        guard digits.count == ContentKey.secretBytes * 2 else { return nil }
        var bytes: [UInt8] = []
        for at in stride(from: 0, to: digits.count, by: 2) {
            guard let byte = UInt8(String(decoding: digits[at..<at + 2], as: UTF8.self), radix: 16) else { return nil }
            bytes.append(byte)
        }
        return bytes
    }

    static func text(_ secret: [UInt8]) -> String {
        secret.map { String($0 >> 4, radix: 16) + String($0 & 15, radix: 16) }.joined()
    }
}
